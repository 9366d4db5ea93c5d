"""Countries by their ISO 3166-1 codes, and the territories of more than one that terms speak of."""

from __future__ import annotations

COUNTRIES = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ CA
    CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA
    GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP
    KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS
    MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS
    RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW
    TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
    """.split()  # noqa: SIM905 -- a list would be 250 lines
)
"""ISO 3166-1 alpha-2, the assigned codes: https://www.iso.org/obp/ui/#search"""

EU = frozenset(
    "AT BE BG CY CZ DE DK EE ES EU FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK AX GF GP MF MQ RE YT".split()  # noqa: SIM905 -- one line
)
"""The members, and the parts of Finland and France that belong to it and have codes of their own."""
TERRITORIES: dict[str, frozenset[str]] = {"EU": EU}
"""Territories of more than one country; any other name is a country's own ISO code."""

_MEANT = {"UK": "GB", "EL": "GR"}
"""Codes in use that ISO does not assign to a country, which no territory would match."""


def within(country: str, territory: str) -> bool:
    """Whether a country lies in a territory such as EU, GB or KR."""
    return country in TERRITORIES.get(territory, frozenset({territory}))


def known_country(code: str) -> str:
    """The code itself; raises ValueError for one that no country and no territory bears."""
    if code in COUNTRIES or code in TERRITORIES:
        return code
    meant = _MEANT.get(code)
    hint = f": {meant} is the code that is meant" if meant else ""
    raise ValueError(f"should be an ISO 3166 code of two capital letters, such as DE{hint}")
