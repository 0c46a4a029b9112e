"""What runs have found, kept in a file of which the documents' tables are drawn."""

import datetime
import json
from pathlib import Path


def keep(path, part, found):
    """Put ``found`` in a part's place; of the plants, in the places of those that it names."""
    file = Path(path)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = found | {"ran": _today()} if part == "seeds" else kept.get(part, {}) | found
    kept[part] = found
    file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def of_plant(name, plant, found):
    """A planted bug, and what it took to find it."""
    return {
        name: {
            "bug": plant.what,
            "seeds": found.seeds,
            "found_by": found.invariant,
            "ran": _today(),
        }
    }


def _today():
    return datetime.datetime.now(datetime.UTC).date().isoformat()
