"""More material for the trials of `potstill profile`: subjects kept for the last test, openings for larger tables.

The demo's Gemma goes on from openings of sentences on medicine, law and sport, into bench/profile/soft_labels (a
minute or two, once). The openings of docstrings have no answers.
"""

import ast
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from storage.profile_read import rows as read
from storage.rows import Row
from storage.table import Table

FOLDER = Path(__file__).parents[1] / "bench" / "profile"
WORDS = 10
LIBRARIES = ("numpy", "scipy", "sklearn")
MEDICINE = (
    "The patient complained of a dull pain in her chest after",
    "High blood pressure can damage the kidneys over many years because",
    "The nurse changed the bandage and checked the wound for",
    "Antibiotics do not help against a cold, since the virus",
    "A child with a fever and a stiff neck should be",
    "After the operation the surgeon explained to the family that",
    "Insulin lowers the sugar in the blood, so people with diabetes",
    "The vaccine protects against measles, and most side effects are",
    "Doctors prescribe less of this medicine to elderly patients because",
    "The fracture of her wrist healed slowly, and the physiotherapist",
    "Asthma makes the airways narrow, which is why the inhaler",
    "A blood test showed that his liver was inflamed and",
    "Too little iron in the diet leads to anaemia, whose symptoms",
    "The midwife listened to the heartbeat of the baby and",
    "Migraine often begins with flashes of light before one eye and",
    "Smoking is the most common cause of lung cancer, but",
    "The dentist found a cavity in the lower molar and",
    "People who are allergic to peanuts carry an injection of adrenaline",
    "The ambulance arrived within minutes, and the paramedics began",
    "Stroke must be treated quickly: the sooner the clot is",
    "Physical exercise strengthens the heart muscle and lowers the",
    "The rash on his arms spread overnight and began to",
    "A healthy adult sleeps seven to nine hours, while insomnia",
    "The pharmacist warned that the tablets should not be taken with",
)
LAW = (
    "The tenant must give notice in writing at least three months",
    "The judge dismissed the claim because the witness had not",
    "A contract is void if one of the parties was forced",
    "The defendant pleaded not guilty and her lawyer asked the court",
    "Under the treaty, both states agreed to extradite persons who",
    "The heirs disputed the will, arguing that the testator had",
    "The jury could not agree on a verdict, so the trial",
    "An employer may dismiss a worker without notice only if",
    "The police searched the house without a warrant, and therefore",
    "The appeal was granted since the lower court had ignored",
    "The buyer may withdraw from the purchase within fourteen days unless",
    "Parliament amended the statute after the constitutional court had ruled",
    "The landlord is liable for damage caused by a leaking roof",
    "Theft is punished by a fine or by imprisonment of up",
    "The parents share custody of the children, and either may",
    "The company was sued for negligence after its driver had",
    "A notary certified the signatures on the deed before the",
    "The prosecutor dropped the charges of fraud for lack of",
    "The copyright of an author expires seventy years after her",
    "The marriage was annulled because the groom had already been",
    "The witness swore an oath and testified that the accused",
    "Bail was refused, as the magistrate feared that the suspect",
    "The neighbour claimed a right of way across the meadow, which",
    "Taxes on inherited land are due within a year of",
)
SPORT = (
    "The goalkeeper dived to the left and caught the ball just",
    "Marathon runners drink water every few kilometres because their bodies",
    "The referee showed the defender a red card after he",
    "In the final set she served two aces and won",
    "The swimmers took their places on the blocks and waited",
    "A cyclist who rides close behind another saves energy, since",
    "The coach changed the team at half time, and the striker",
    "Gymnasts train for years before they can land a double",
    "The home side scored in the last minute, so the fans",
    "Basketball players jump higher when they bend their knees and",
    "The skier missed a gate on the steep slope and was",
    "Our rowing club meets at the lake on Saturday morning to",
    "The boxer lost on points although he had knocked his",
    "In cricket the bowler runs up to the wicket and",
    "The sprinter was disqualified for a false start, which meant",
    "Children learn to skate by pushing off with one foot",
    "The captain lifted the cup while her teammates danced around",
    "Golfers shout a warning when the ball flies towards other",
    "The relay team dropped the baton at the second exchange",
    "A good climber trusts her feet more than her arms and",
    "The league was decided on goal difference after both clubs",
    "He threw the javelin further than anyone had in the stadium",
    "Fans of the rugby team sang in the rain until",
    "The jockey held the horse back until the last bend",
)
RUN = """table = "soft_labels"
use = "use.toml"
[teacher]
model = "google/gemma-3-270m"
revision = "gguf-q4_k_m"
[endpoint]
kind = "embedded"
slots = 4
access_path = "self_host"
[limits]
concurrency = 4
[prompts]
path = "prompts.jsonl"
[ask]
mode = "generate"
top_k = 10
max_tokens = 40
temperature = 1.0
"""
INSIDE_USE = """action = "internal_use"
[student]
name = "benchmark"
licence = "LicenseRef-scancode-gemma-tou-2025-03-24"
init_from = "scratch"
kind = "general_llm"
distributed = false
intent_similar = true
[organisation]
domicile = "US"
deploys_in = ["US"]
commercial = true
[data]
signal = "top_k_logprobs"
"""


SUBJECTS = {"medicine": MEDICINE, "law": LAW, "sport": SPORT}


def rows() -> list[Row]:
    """The rows on SUBJECTS, collected where they are not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "run.toml").write_text(RUN, "utf-8")
    (FOLDER / "use.toml").write_text(INSIDE_USE, "utf-8")
    lines = [
        {"id": f"{name}-{number}", "prompt": prompt, "domain": name, "licence": "CC0-1.0"}
        for name, prompts in SUBJECTS.items()
        for number, prompt in enumerate(prompts)
    ]
    (FOLDER / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    subprocess.run([Path(sys.executable).with_name("potstill"), "collect", "run.toml"], cwd=FOLDER, check=True)
    return list(read(Table.open(FOLDER / "soft_labels")))


def openings() -> list[str]:
    """Openings of the docstrings of Python, NumPy, SciPy and scikit-learn, each once, in the order of the alphabet."""
    return sorted(set(_docstrings()))


def _docstrings() -> Iterator[str]:
    paths = sysconfig.get_paths()
    files = [*Path(paths["stdlib"]).glob("*.py")]
    for library in LIBRARIES:
        files += [path for path in (Path(paths["purelib"]) / library).rglob("*.py") if "tests" not in path.parts]
    for path in files:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", text):
                    if len(words := sentence.split()) > WORDS and words[0][:1].isupper():
                        yield " ".join(words[:WORDS])
