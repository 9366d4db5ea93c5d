"""Real text that a Debian machine has: documentation under /usr/share/doc, with its licence, as lines of a prompt file.

Only packages whose machine-readable copyright file puts all files under one well-known licence give text.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path("/usr/share/doc")
# Debian's short names → SPDX (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/)
LICENCES = {
    "Expat": "MIT", "MIT": "MIT", "Apache-2.0": "Apache-2.0", "BSD-3-clause": "BSD-3-Clause",
    "BSD-2-clause": "BSD-2-Clause", "ISC": "ISC", "Zlib": "Zlib", "GPL-2": "GPL-2.0-only",
    "GPL-2+": "GPL-2.0-or-later", "GPL-3": "GPL-3.0-only", "GPL-3+": "GPL-3.0-or-later",
    "LGPL-2+": "LGPL-2.0-or-later", "LGPL-2.1": "LGPL-2.1-only", "LGPL-2.1+": "LGPL-2.1-or-later",
    "LGPL-3+": "LGPL-3.0-or-later",
}  # fmt: skip
ALL_FILES = re.compile(r"^Files:\s*\*\s*$.*?^License:\s*(\S+)\s*$", re.MULTILINE | re.DOTALL)
PROSE = re.compile(r"^(README|NEWS|FAQ|INSTALL|HACKING|ANNOUNCE|TODO|.*\.(txt|md|rst))", re.IGNORECASE)
LEAST, MOST = 400, 900
"""Characters of a passage, about 100 to 220 tokens."""
PER_PACKAGE = 24


def prompts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` passages in a shuffled order, at most PER_PACKAGE from one package and each text once."""
    lines, seen = [], set()
    for package, licence in _packages():
        passages = list(_passages(DOCS / package))
        random.Random(f"{seed} {package}").shuffle(passages)
        for text in passages[:PER_PACKAGE]:
            digest = hashlib.sha256(re.sub(r"\W+", " ", text.lower()).encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                lines.append({"id": digest[:16], "prompt": text, "licence": licence, "domain": package})
    random.Random(seed).shuffle(lines)
    return lines[:count]


def _packages() -> Iterator[tuple[str, str]]:
    for path in sorted(DOCS.glob("*/copyright")):
        match = ALL_FILES.search(path.read_text("utf-8", errors="replace"))
        if match and match[1] in LICENCES and not path.parent.is_symlink():
            yield path.parent.name, LICENCES[match[1]]


def _passages(folder: Path) -> Iterator[str]:
    """Paragraphs joined until they are long enough; tables, code and other alphabets are left out."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or not PROSE.match(path.name):
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        passage = ""
        for paragraph in re.split(r"\n\s*\n", raw.decode("utf-8", errors="ignore").replace("\r", "")):
            passage = f"{passage}\n\n{paragraph.strip()}".strip()
            if len(passage) >= LEAST:
                letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in passage)
                if len(passage) <= MOST and letters >= 0.8 * len(passage):
                    yield passage
                passage = ""
