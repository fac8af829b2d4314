"""A person's own tables and folders of texts: everything is read, or reported with its line or path."""

from __future__ import annotations

import csv
import datetime
import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""What stands for a missing value in a table, in lower case; compared without case and surrounding white space."""

ColumnKind = Literal["number", "category", "date", "text"]

_DELIMITERS = (",", ";", "\t", "|")
_LARGEST_FIELD = 2**31 - 1  # characters; csv's own limit of 131,072 is less than a long document
_CHUNK = 4096  # rows turned into columns at a time: a million live rows would keep the garbage collector busy
_LISTED = 20  # columns that an error message lists
_BYTES_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how errors="surrogateescape" decodes them
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?", re.ASCII)


class Bad(NamedTuple):
    """A row or file that cannot be used."""

    where: str
    """File and physical line, from 1 (`reviews.csv:17`), or folder and file inside it (`reviews/good/17.txt`)."""
    why: str
    """One short sentence."""


@dataclass(frozen=True, eq=False)
class Table:
    """What could be read of a file or folder, and what could not."""

    frame: pd.DataFrame
    """All columns as `str` objects (dtype object), white space around a value removed, missing values as None."""
    bad: list[Bad]
    """The quarantined rows or files, in the order of the file or folder."""
    path: Path
    """Where it was read from."""
    origins: Sequence[int] | Sequence[str] = ()
    """Where each row of the frame is from: the physical line on which it starts, or its file's path in the folder."""

    @property
    def total(self) -> int:
        """Rows (files) there were, the bad ones included."""
        return len(self.frame) + len(self.bad)

    def where(self, row: int) -> str:
        """Where row number `row` of the frame (from 0) is from, as in `Bad.where`."""
        origin = self.origins[row]
        return f"{_name(self.path)}/{origin}" if isinstance(origin, str) else f"{self.path.name}:{origin}"


@dataclass(frozen=True)
class FileKind:
    """What the files in class folders hold."""

    column: str
    """Column of the table that takes their contents."""
    pattern: str
    """How messages call them: `*.txt`."""
    suffixes: frozenset[str]
    """Of their names, in lower case."""
    read: Callable[[Path], tuple[Any, str]]
    """Gives a file's content, or None and why it cannot be used."""
    other_types_are_bad: bool = False
    """Whether files with other suffixes inside a class folder are quarantined; otherwise they are ignored."""

    def fits(self, path: Path) -> bool:
        """Whether a file is meant to be of this kind."""
        return path.suffix.lower() in self.suffixes


class _Record(NamedTuple):
    """One row as parsed, or why it could not be: `fields` is empty then. Lines are counted from 0."""

    start: int
    stop: int
    fields: list[str]
    why: str = ""


def read_table(path: Path, required: Sequence[str] = (), missing: frozenset[str] = MISSING) -> Table:
    r"""Read a delimited text file with a header line.

    A `.tsv` or `.tab` file is split at tabs, any other at the one of `,` `;` tab `|` that splits its header line into
    most fields. Fields may be quoted (`"`, doubled inside) and then hold delimiters and line ends. UTF-8, with or
    without a byte order mark; lines end in `\n`, `\r\n` or `\r`. Blank lines are ignored.

    Quarantined in `bad`, with the physical line: a row with another number of fields than the header, with bytes that
    are not UTF-8, with a NUL byte, with text after a closing quote, or whose quote is never closed (the line on which
    the quote opens; reading goes on with the line after it).

    Args:
        path: The file.
        required: Columns that have to be there.
        missing: What stands for a missing value, in lower case. Pass `frozenset({""})` where "none" or "?" is a value.

    Raises:
        UserError: The file is missing, unreadable, empty, UTF-16 or has no rows; a column name is empty or there twice;
            a required column is missing.
    """
    path = Path(path)
    lines, spoiled = read_lines(path, "a header line and rows")
    delimiter = _delimiter(path, lines)
    with _long_fields():
        records = _records(lines, delimiter)
        names = _header(path, next(records, None), spoiled, required)
        columns, starts, bad = _sorted_out(path, records, len(names), spoiled)
    if not starts and not bad:
        raise UserError(f"{path}: has a header line but no rows; add rows below it")
    return Table(_frame(names, columns, missing), bad, path, starts)


def read_fields(path: Path, columns: Sequence[str]) -> Table:
    r"""Read a text file without a header line, each line of which holds as many fields, with tabs between them.

    Nothing is quoted: a quotation mark is a character like any other. UTF-8, with or without a byte order mark; lines
    end in `\n`, `\r\n` or `\r`. Blank lines are ignored. Quarantined in `bad`: a line with another number of fields,
    with bytes that are not UTF-8, or with a NUL byte.

    Args:
        path: The file.
        columns: Names for the fields.

    Raises:
        UserError: The file is missing, unreadable, empty or UTF-16.
    """
    path = Path(path)
    lines, spoiled = read_lines(path, "lines of text")
    records = (
        _Record(number, number + 1, line.rstrip("\r\n").split("\t"), "")
        for number, line in enumerate(lines)
        if line.strip()
    )
    columns_of_rows, starts, bad = _sorted_out(path, records, len(columns), spoiled, "not")
    return Table(_frame(columns, columns_of_rows, frozenset({""})), bad, path, starts)


def read_class_folders(folder: Path, kind: FileKind) -> Table:
    """Read a folder that holds one sub-folder per class, with files of one kind in it (at any depth).

    The columns are the kind's own and `label` (the sub-folder's name); rows are sorted by label, then by path. Hidden
    files and folders (`.git`) are ignored. Quarantined in `bad`: files that cannot be read, files outside every class
    folder, class folders without files of the kind, and links, which are never followed.

    Raises:
        UserError: There is no such folder, it has fewer than two class folders, or fewer than two of them hold files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = f"there is no such folder; give one with a sub-folder of {kind.pattern} files per class"
        raise UserError(f"{folder}: {problem}")
    classes, bad = _class_folders(folder, kind)
    rows: list[tuple[Any, str, str]] = []
    for class_folder in classes:
        files = _files(class_folder, kind)
        if not files:
            bad.append(Bad(_inside(folder, class_folder), f"this class folder holds no {kind.pattern} file"))
        for file, (content, why) in zip(files, _contents(files, kind), strict=True):
            if why:
                bad.append(Bad(_inside(folder, file), why))
            else:
                rows.append((content, class_folder.name, file.relative_to(folder).as_posix()))
    contents, labels, origins = ([row[column] for row in rows] for column in range(3))
    if (readable := len(set(labels))) < 2:
        hint = f" ({bad[0].where}: {bad[0].why})" if bad else ""
        found = f"class folders with readable {kind.pattern} files: {readable}"
        raise UserError(f"{folder}: {found}, at least 2 are needed{hint}")
    import pandas as pd

    return Table(pd.DataFrame({kind.column: contents, "label": labels}, dtype=object), bad, folder, origins)


def check_bad(bad: Sequence[Bad], total: int, max_bad: float, what: str) -> None:
    """Raise a UserError when more than the fraction `max_bad` of `total` rows (bad ones included) is bad.

    Args:
        bad: The quarantined rows.
        total: Rows there were, the bad ones included.
        max_bad: The largest share allowed, 0 to 1.
        what: What is counted, in the plural: "rows of reviews.csv".
    """
    share = len(bad) / max(total, len(bad), 1)
    if share <= max_bad:
        return
    first = "; ".join(f"{where}: {why}" for where, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    enough = math.ceil(share * 1000) / 1000
    raise UserError(
        f"{len(bad)} of {total} {what} are bad ({100 * share:.3g} %, allowed are {100 * max_bad:.3g} %): {first}; "
        f"correct them, or allow them with --max-bad {enough:g}"
    )


def column_kind(values: Iterable[object], missing: frozenset[str] = MISSING) -> ColumnKind:
    """What a column of strings holds, judged by its values that are not missing.

    "number" if all are finite decimal numbers (`-2`, `1e3`); "date" if all are ISO dates (`2024-05-31`, with or without
    a time); "text" if more than half of them are distinct and they have three words or more on average; "category"
    otherwise, and for a column without any value. `missing` is as in `read_table`.
    """
    present = [text for text in map(_plain, values) if text and text.lower() not in missing]
    if not present:
        return "category"
    if all(map(_is_number, present)):
        return "number"
    if all(map(_is_date, present)):
        return "date"
    distinct = len(set(present)) / len(present)
    words = sum(len(text.split()) for text in present) / len(present)
    return "text" if distinct > 0.5 and words >= 3 else "category"


def read_lines(path: Path, needed: str) -> tuple[list[str], dict[int, str]]:
    """Lines of a file with their ends, without byte order mark; and why some (from 0) are unusable.

    Raises:
        UserError: The file is missing, unreadable, UTF-16, or empty, where `needed` says what it should hold.
    """
    text = _decoded(path, needed)
    lines = list(io.StringIO(text, newline=""))
    return lines, _spoiled_lines(lines) if "\0" in text or _BYTES_NOT_UTF8.search(text) else {}


def _decoded(path: Path, needed: str) -> str:
    """The file's text; bytes that are not UTF-8 become lone surrogates, to be found again."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a file") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise UserError(f"{path}: is empty; it needs {needed}")
    return text


def _spoiled_lines(lines: Sequence[str]) -> dict[int, str]:
    """Why each line (from 0) with unusable bytes is unusable."""
    spoiled = {}
    for number, line in enumerate(lines):
        if match := _BYTES_NOT_UTF8.search(line):
            spoiled[number] = f"the byte 0x{ord(match[0]) - 0xDC00:02X} is not UTF-8"
        elif "\0" in line:
            spoiled[number] = "there is a NUL byte in it"
    return spoiled


def _delimiter(path: Path, lines: Sequence[str]) -> str:
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    header = next(line for line in lines if line.strip())
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter))))


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift csv's limit on the length of a field, which is global to the process, for a while."""
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(lines: list[str], delimiter: str) -> Iterator[_Record]:
    """Parse lines into rows, and go on after a row that cannot be parsed.

    A quote that is never closed makes the parser run to the end of the file, or to the next quote, where it fails.
    Reading then goes on with the line after the one on which the quote opened. No line is read ahead more than once:
    inside the lines that were swallowed all quotes are doubled, and those open no field.
    """
    start = 0
    while start < len(lines):
        rest = (lines[number] for number in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
        base = start
        try:
            for fields in reader:
                stop = base + reader.line_num
                if len(fields) > 1 or (fields and lines[start].strip()):
                    yield _Record(start, stop, fields)
                start = stop
        except csv.Error:
            stop = base + reader.line_num
            opened, broken = _last_quote(lines[start:stop], delimiter)
            opened += start
            never_closed = not broken or opened < stop - 1
            why = "a quote opens here and is never closed" if never_closed else "text follows a closing quote"
            yield _Record(opened, opened + 1, [], why)
            start = opened + 1


def _last_quote(lines: Sequence[str], delimiter: str) -> tuple[int, bool]:
    """The line (from 0) on which a broken record's last quote opens, and whether text follows where it closes."""
    opened, state = 0, "start"
    for number, line in enumerate(lines):
        if state == "quoted" and '"' not in line:
            continue
        for character in line.rstrip("\r\n"):
            if state == "closed" and character not in ('"', delimiter):
                return opened, True
            if state == "start" and character == '"':
                opened = number
            state = _next_state(state, character, delimiter)
    return opened, False


def _next_state(state: str, character: str, delimiter: str) -> str:
    """Where in a field csv's parser is after one more character: "start", "plain", "quoted" or "closed"."""
    if state == "quoted":
        return "closed" if character == '"' else "quoted"
    if character == delimiter:
        return "start"
    if character == '"' and state != "plain":
        return "quoted"
    return "start" if state == "start" and character == " " and delimiter != "\t" else "plain"


def _header(path: Path, record: _Record | None, spoiled: dict[int, str], required: Sequence[str]) -> list[str]:
    """The column names, checked."""
    if record is None:
        raise UserError(f"{path}: is empty; it needs a header line and rows")
    where = f"{path}:{record.start + 1}"
    reasons = [spoiled[line] for line in range(record.start, record.stop) if line in spoiled]
    if why := record.why or next(iter(reasons), ""):
        raise UserError(f"{where}: the header line cannot be read: {why}; correct it and save the file as UTF-8")
    names = [name.strip() for name in record.fields]
    if "" in names:
        raise UserError(f"{where}: column {names.index('') + 1} has no name; give it one in the header line")
    for position, name in enumerate(names):
        if (first := names.index(name)) < position:
            columns = f"columns {first + 1} and {position + 1}"
            raise UserError(f"{where}: two columns are named {name!r} ({columns}); rename one in the header line")
    for name in required:
        if name not in names:
            raise UserError(f"{where}: {_no_column(name, names)}")
    return names


def _no_column(name: str, names: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    suggestion = f"did you mean {by_lower[close[0]]!r}?" if close else "name it in the header line"
    listed = ", ".join(map(repr, names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")
    return f"there is no column {name!r} (columns: {listed}); {suggestion}"


def _sorted_out(
    path: Path, records: Iterable[_Record], width: int, spoiled: dict[int, str], wanted: str = "the header has"
) -> tuple[list[list[str]], list[int], list[Bad]]:
    """The columns of the good rows, the physical lines (from 1) on which those start, and the bad rows."""
    columns: list[list[str]] = [[] for _ in range(width)]
    rows: list[list[str]] = []
    starts: list[int] = []
    bad: list[Bad] = []
    for record in records:
        line, why = _verdict(record, width, spoiled, wanted)
        if why:
            bad.append(Bad(f"{path.name}:{line + 1}", why))
            continue
        rows.append(record.fields)
        starts.append(record.start + 1)
        if len(rows) == _CHUNK:
            _move(rows, columns)
    _move(rows, columns)
    return columns, starts, bad


def _verdict(record: _Record, width: int, spoiled: dict[int, str], wanted: str) -> tuple[int, str]:
    """The line (from 0) that makes the record bad, and why; no reason if it is good."""
    start, stop, fields, why = record
    if spoiled:
        for line in range(start, stop):
            if line in spoiled:
                return line, spoiled[line]
    if why or len(fields) == width:
        return start, why
    end = f"; the row ends on line {stop}" if stop - start > 1 else ""
    return start, f"the row has {len(fields)} fields, {wanted} {width}{end}"


def _move(rows: list[list[str]], columns: list[list[str]]) -> None:
    for position, column in enumerate(columns):
        column.extend([row[position] for row in rows])
    rows.clear()


def _frame(names: Sequence[str], columns: Sequence[Sequence[str]], missing: frozenset[str]) -> pd.DataFrame:
    import pandas as pd

    cleaned = {name: _cleaned(values, missing) for name, values in zip(names, columns, strict=True)}
    return pd.DataFrame(cleaned, dtype=object)


def _cleaned(values: Iterable[str], missing: frozenset[str]) -> list[str | None]:
    longest = max(map(len, missing), default=-1)
    stripped = (value.strip() for value in values)
    return [None if len(value) <= longest and value.lower() in missing else value for value in stripped]


def _inside(folder: Path, file: Path) -> str:
    return (_name(folder) / file.relative_to(folder)).as_posix()


def _name(path: Path) -> Path:
    """The last part of the path, also where the path is `.`."""
    return Path(path.name or path.resolve().name)


def _class_folders(folder: Path, kind: FileKind) -> tuple[list[Path], list[Bad]]:
    """The class folders, sorted, and what lies beside them and should not."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    classes = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    if len(classes) < 2:
        needed = f"at least 2 are needed, each with {kind.pattern} files"
        raise UserError(f"{folder}: class folders: {len(classes)}, {needed}")
    return classes, [Bad(_inside(folder, entry), why) for entry in entries if (why := _misplaced(entry, kind))]


def _misplaced(entry: Path, kind: FileKind) -> str:
    """Why something beside the class folders is bad, or nothing if it is no file of the kind at all."""
    if entry.is_symlink() and (entry.is_dir() or kind.fits(entry)):
        return "it is a link, and links are not followed"
    return "it lies outside every class folder" if entry.is_file() and kind.fits(entry) else ""


def _files(folder: Path, kind: FileKind) -> list[Path]:
    """The files of the kind at any depth, sorted, and the links that are not followed."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); correct its permissions")

    found = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        found += [path for path in paths if kind.other_types_are_bad or kind.fits(path)]
    return sorted(found)


def _contents(files: Sequence[Path], kind: FileKind) -> list[tuple[Any, str]]:
    """For each file its content and nothing, or nothing and why it cannot be used."""

    def content(file: Path) -> tuple[Any, str]:
        if file.is_symlink():
            return None, "it is a link, and links are not followed"
        if not kind.fits(file):
            return None, f"it is no {kind.pattern} file"
        try:
            return kind.read(file)
        except OSError as error:
            return None, f"it cannot be read ({error.strerror})"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(content, files))


def _text_of(file: Path) -> tuple[str, str]:
    try:
        text = file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return "", f"the byte 0x{error.object[error.start]:02X} is not UTF-8"
    if "\0" in text:
        return "", "there is a NUL byte in it"
    return text, "" if text else "it is empty"


TEXTS = FileKind("text", "*.txt", frozenset({".txt"}), _text_of)
"""Texts in UTF-8: without NUL bytes, and not empty."""


def _plain(value: object) -> str:
    """The value as text, empty for what Python and pandas use for a missing one."""
    if isinstance(value, str):
        return value.strip()
    text = str(value)
    return "" if text in ("None", "nan", "NaT", "<NA>") else text


def _is_number(text: str) -> bool:
    # float() also takes 1_000 and the digits of other scripts, which nobody means as a number in a table.
    if "_" in text or not text.isascii():
        return False
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    if not DATE.fullmatch(text):
        return False
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
