"""Files as text: plain, or a column of a table."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from vastmax.data.columns import Role, find_columns, texts, title
from vastmax.data.files import PARTS, few, read_text, shown_name, suffix_of
from vastmax.data.tables import DELIMITED, RECORDS, read_tables
from vastmax.validation import shown

KNOWN = ("text", "content", "sentence", "document", "body", "article", "story", "review", "comment", "message")
"""Names of a column of texts, the likeliest first."""


@dataclass
class TextReader:
    """Reads files, and keeps what is to be said of them.

    Args:
        encoding: of all but Parquet.
        text_column: the column of a table, by name or by number from 1; None to find it.
    """

    encoding: str
    text_column: str | None
    _said: dict[str, None] = field(default_factory=dict)
    _columns: dict[str, None] = field(default_factory=dict)
    _plain: list[Path] = field(default_factory=list)

    def notes(self, folder: Path) -> list[str]:
        """Say which columns were read, and which files of `folder` were not taken for tables, a sentence each."""
        said = list(self._said)
        notes = [*said[:3], *([f"and {len(said) - 3:,} more notes of this kind"] if len(said) > 3 else [])]
        notes += [f"texts from column {shown_name(', '.join(self._columns))}"] if self._columns else []
        if self._plain:
            names = few(folder, self._plain)
            notes.append(f"read as plain lines, for neither --text-column nor a first row names a column: {names}")
        return notes

    def text(self, path: Path, *, blank: bool = False) -> str:
        """Return all the text of a file.

        Raises:
            ValueError: a file that cannot be read, or one without text unless that is allowed by `blank`.
        """
        text = "\n".join(self.parts(path).values())
        if not blank and (not text or text.isspace()):
            raise ValueError(f"{shown(path)}: expected text, got {'only whitespace' if text else 'an empty file'}")
        return text

    def parts(self, path: Path) -> dict[str, str]:
        """Return the text of a file, named all, or that of each part which a JSON file has."""
        suffix = suffix_of(path)
        if suffix not in RECORDS:
            text = read_text(path, self.encoding)
            if self.text_column is not None and suffix not in DELIMITED:
                raise ValueError(
                    f"text_column: expected a table ({', '.join((*DELIMITED, *RECORDS))}) to take a column of, got "
                    f"{shown(self.text_column)} beside {shown(path)}"
                )
            if not text.strip():
                return {"all": text}
            if self.text_column is None and not (suffix in (".csv", ".tsv") and _names_texts(text)):
                self._plain += [path] if suffix in (".csv", ".tsv") else []
                return {"all": text}
        role = Role("text_column", self.text_column, KNOWN)
        found = read_tables(path, [role], encoding=self.encoding)
        self._said |= dict.fromkeys(found.notes)
        joined = {}
        for part, [table] in found.parts.items():
            [column] = find_columns(table, [role])
            joined[part] = "\n".join(texts(table, column, role, blank=True)).replace("\r\n", "\n")
            self._columns[title(table, column)] = None
        return {part: joined[part] for part in (*PARTS, "all") if part in joined}


def _names_texts(text: str) -> bool:
    """Tell whether the first row of a table has one of the names of a column of texts."""
    cells = re.split(r"[,;\t|]", text.lstrip().split("\n", 1)[0].lower())
    return any(cell.strip(' "') in KNOWN for cell in cells)
