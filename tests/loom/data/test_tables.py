import csv
import os
import random
import time
from pathlib import Path

import pytest

from loom.data.tables import MISSING, TEXTS, Bad, check_bad, column_kind, read_class_folders, read_table
from loom.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content, name="reviews.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(table):
    return table.frame.to_numpy().tolist()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header_line(write, delimiter):
    table = read_table(write(f"text{delimiter}label\nfine{delimiter}good\n"))
    assert list(table.frame.columns) == ["text", "label"]
    assert rows(table) == [["fine", "good"]]


def test_a_delimiter_inside_a_quoted_name_does_not_count(write):
    table = read_table(write('"a,b,c";d\n1;2\n'))
    assert list(table.frame.columns) == ["a,b,c", "d"]


def test_a_tsv_file_is_split_at_tabs_only(write):
    assert rows(read_table(write("a,b\tc\n1,2\t3\n", "t.tsv"))) == [["1,2", "3"]]


def test_a_table_of_one_column_is_read(write):
    assert rows(read_table(write('text\nfine\n""\nbad\n'))) == [["fine"], [None], ["bad"]]


def test_quoted_fields_hold_delimiters_quotes_and_line_ends(write):
    table = read_table(write('text,label\n"one, ""two""\nthree",good\nplain,bad\n'))
    assert rows(table) == [['one, "two"\nthree', "good"], ["plain", "bad"]]
    assert list(table.origins) == [2, 4]
    assert table.where(1) == "reviews.csv:4"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_and_a_byte_order_mark_are_understood(write, end):
    table = read_table(write("\ufeff" + end.join(["text,label", "naïve,good", "short", "x,bad"])))
    assert list(table.frame.columns) == ["text", "label"]
    assert rows(table) == [["naïve", "good"], ["x", "bad"]]
    assert table.bad == [Bad("reviews.csv:3", "the row has 1 fields, the header has 2")]


def test_blank_lines_are_ignored_and_counted(write):
    table = read_table(write("\n\na,b\n\n1,2\n   \n3,4\n\n"))
    assert rows(table) == [["1", "2"], ["3", "4"]]
    assert list(table.origins) == [5, 7]
    assert not table.bad


def test_a_row_of_empty_fields_is_no_blank_line(write):
    assert rows(read_table(write("a\tb\n\t\n1\t2\n", "t.tsv"))) == [[None, None], ["1", "2"]]


def test_columns_are_strings_and_missing_values_are_none(write):
    table = read_table(write("a,b\n 1 ,x y \nNaN,?\n NULL,n/A\n,None\n0,nano\n"))
    assert rows(table) == [["1", "x y"], [None, None], [None, None], [None, None], ["0", "nano"]]
    assert all(dtype.kind == "O" for dtype in table.frame.dtypes)


def test_another_set_of_missing_values_can_be_given(write):
    table = read_table(write("a,b\nnone,?\n,x\n"), missing=frozenset({""}))
    assert rows(table) == [["none", "?"], [None, "x"]]


def test_the_missing_values_are_the_documented_ones():
    assert frozenset({"", "na", "n/a", "nan", "null", "none", "?"}) == MISSING


def test_a_row_that_is_not_utf8_is_quarantined(write):
    table = read_table(write(b'text,label\ngood,1\ncaf\xe9,0\n"two\nlin\xffes",0\nfine,1\n'))
    assert rows(table) == [["good", "1"], ["fine", "1"]]
    assert table.bad == [
        Bad("reviews.csv:3", "the byte 0xE9 is not UTF-8"),
        Bad("reviews.csv:5", "the byte 0xFF is not UTF-8"),
    ]
    assert table.total == 4


def test_a_row_with_a_nul_byte_is_quarantined(write):
    table = read_table(write(b"text,label\ngo\0od,1\nfine,1\n"))
    assert rows(table) == [["fine", "1"]]
    assert table.bad == [Bad("reviews.csv:2", "there is a NUL byte in it")]


def test_a_row_with_a_wrong_number_of_fields_is_quarantined(write):
    table = read_table(write('a,b\n1,2,3\n4\n5,6\n"7\n8",9,10\n'))
    assert rows(table) == [["5", "6"]]
    assert table.bad == [
        Bad("reviews.csv:2", "the row has 3 fields, the header has 2"),
        Bad("reviews.csv:3", "the row has 1 fields, the header has 2"),
        Bad("reviews.csv:5", "the row has 3 fields, the header has 2; the row ends on line 6"),
    ]


def test_text_after_a_closing_quote_is_quarantined(write):
    table = read_table(write('a,b\n"1" x,2\n3,4\n'))
    assert rows(table) == [["3", "4"]]
    assert table.bad == [Bad("reviews.csv:2", "text follows a closing quote")]


@pytest.mark.parametrize("later", ["", '"closed",1\n', '"with ""quotes"" inside",1\n', '"",1\n'])
def test_a_quote_never_closed_costs_one_row_and_names_its_line(write, later):
    table = read_table(write('a,b\n1,2\n"open,3\n4,5\n6,7\n' + later))
    assert rows(table)[:3] == [["1", "2"], ["4", "5"], ["6", "7"]]
    assert len(table.frame) == 3 + bool(later)
    assert table.bad == [Bad("reviews.csv:3", "a quote opens here and is never closed")]


def test_an_open_quote_is_named_by_its_own_line_not_by_that_of_its_row(write):
    table = read_table(write('a,b,c\n"one\ntwo",x,"open\n1,2,3\n'))
    assert rows(table) == [["1", "2", "3"]]
    assert table.bad == [Bad("reviews.csv:3", "a quote opens here and is never closed")]


def test_an_open_quote_on_the_last_line_is_reported(write):
    table = read_table(write('a,b\n1,2\n3,"x'))
    assert rows(table) == [["1", "2"]]
    assert table.bad == [Bad("reviews.csv:3", "a quote opens here and is never closed")]


def test_many_open_quotes_take_linear_time(write):
    start = time.process_time()
    table = read_table(write("a,b\n" + "".join(f'{n},"open {n}\n' for n in range(20_000))))
    assert time.process_time() - start < 2  # about 0.1 s on a quiet core
    assert len(table.bad) == 20_000


def test_a_document_longer_than_the_limit_of_csv_is_read_and_the_limit_kept(write):
    before = csv.field_size_limit()
    assert rows(read_table(write("a,b\n" + "x" * 300_000 + ",1\n")))[0][0] == "x" * 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("seed", range(20))
def test_what_csv_writes_is_read_back(tmp_path, seed):
    rng = random.Random(seed)
    alphabet = ["x", "é", "語", '"', ",", ";", "\n", " ", "'"]
    written = [["v" + "".join(rng.choices(alphabet, k=rng.randint(0, 9))) + "w" for _ in range(3)] for _ in range(30)]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "c"], *written])
    table = read_table(path)
    assert rows(table) == written
    assert not table.bad


@pytest.mark.parametrize("seed", range(60))
def test_no_line_of_a_damaged_file_vanishes_and_nothing_crashes(write, seed):
    rng = random.Random(seed)
    lines = [f'{n},"text {n}",plain'.encode() for n in range(60)]
    damaged = set(rng.sample(range(60), 8))
    for number in damaged:
        line = bytearray(lines[number])
        line[rng.randrange(len(line))] = rng.choice(b'",\0\xe9\xff\x80')
        lines[number] = bytes(line)
    table = read_table(write(b"id,text,rest\n" + b"\n".join(lines)))
    whole = {str(number) for number in range(60)} - {str(number) for number in damaged}
    accounted = set(table.frame["id"]) | {str(int(where.split(":")[1]) - 2) for where, _ in table.bad}
    assert whole <= accounted
    assert all(1 <= int(where.split(":")[1]) <= 61 for where, _ in table.bad)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_never_crash(write, seed):
    rng = random.Random(seed)
    content = b"a,b\n" + bytes(rng.choice(b'ab",;\n\r\t \0\xc3\xa9\xff') for _ in range(600))
    table = read_table(write(content))
    assert table.total == len(table.frame) + len(table.bad) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("\ufeff", "is empty"),
        ("a,b\n", "no rows"),
        ("a,b\n\n\n", "no rows"),
        ("a,b,a\n1,2,3\n", "reviews.csv:1: two columns are named 'a' (columns 1 and 3)"),
        ("\na,,c\n1,2,3\n", "reviews.csv:2: column 2 has no name"),
        ('a,"b\n1,2\n', "reviews.csv:1: the header line cannot be read: a quote opens here"),
        (b"caf\xe9,b\n1,2\n", "reviews.csv:1: the header line cannot be read: the byte 0xE9"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_an_unusable_file_is_a_users_error_in_one_line(write, content, message):
    with pytest.raises(UserError) as caught:
        read_table(write(content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_users_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path)


def test_a_missing_column_is_named_with_those_there_are_and_the_closest(write):
    with pytest.raises(UserError) as caught:
        read_table(write("Txt,lable,other\n1,2,3\n"), required=["label"])
    assert "no column 'label' (columns: 'Txt', 'lable', 'other'); did you mean 'lable'?" in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'Txt'"):
        read_table(write("Txt,label\n1,2\n"), required=["text"])
    with pytest.raises(UserError, match="name it in the header line"):
        read_table(write("x,label\n1,2\n"), required=["sentence"])


def test_required_columns_that_are_there_are_fine(write):
    assert len(read_table(write("text,label\na,b\n"), required=["label", "text"]).frame) == 1


def test_a_file_with_only_bad_rows_gives_an_empty_frame_and_their_list(write):
    table = read_table(write("a,b\n1\n2\n"))
    assert list(table.frame.columns) == ["a", "b"]
    assert len(table.frame) == 0
    assert len(table.bad) == 2


def test_reading_is_fast(write):
    path = write("a,b,c,d,label\n" + "".join(f"{n},{n % 7},some text,,good\n" for n in range(100_000)))
    start = time.process_time()
    assert read_table(path).frame.shape == (100_000, 5)
    assert time.process_time() - start < 2  # about 0.4 s on a quiet core


@pytest.fixture
def folder(write, tmp_path):
    for name in ("good/2.txt", "good/1.txt", "good/deep/3.txt", "bad/9.txt"):
        write(f"text of {name}\n", f"texts/{name}")
    return tmp_path / "texts"


def test_a_text_folder_is_read_sorted_and_recursively(folder):
    table = read_class_folders(folder, TEXTS)
    names = ["bad/9.txt", "good/1.txt", "good/2.txt", "good/deep/3.txt"]
    assert rows(table) == [[f"text of {name}", name.split("/")[0]] for name in names]
    assert list(table.frame.columns) == ["text", "label"]
    assert table.where(3) == "texts/good/deep/3.txt"
    assert not table.bad


def test_a_text_that_looks_like_a_missing_value_is_a_text(folder, write):
    write("None", "texts/bad/a.txt")
    assert "None" in list(read_class_folders(folder, TEXTS).frame["text"])


def test_unusable_texts_are_quarantined_with_their_path(folder, write):
    write(b"caf\xe9", "texts/good/latin.txt")
    write(" \n", "texts/good/empty.txt")
    write("a\0b", "texts/bad/nul.TXT")
    write("stray", "texts/stray.txt")
    table = read_class_folders(folder, TEXTS)
    assert set(table.bad) == {
        Bad("texts/good/latin.txt", "the byte 0xE9 is not UTF-8"),
        Bad("texts/good/empty.txt", "it is empty"),
        Bad("texts/bad/nul.TXT", "there is a NUL byte in it"),
        Bad("texts/stray.txt", "it lies outside every class folder"),
    }
    assert table.total == 8


def test_hidden_files_and_other_types_are_ignored(folder, write):
    for name in (".git/x.txt", "good/.cache/x.txt", "good/.x.txt", "good/x.pdf", "README.md"):
        write("x", f"texts/{name}")
    table = read_class_folders(folder, TEXTS)
    assert len(table.frame) == 4
    assert not table.bad


def test_a_class_folder_without_texts_is_reported(folder):
    (folder / "fair").mkdir()
    assert read_class_folders(folder, TEXTS).bad == [Bad("texts/fair", "this class folder holds no *.txt file")]


def test_links_are_reported_and_never_followed(folder, write, tmp_path):
    secret = write("secret", "elsewhere/secret.txt")
    os.symlink(secret, folder / "good" / "link.txt")
    os.symlink(secret.parent, folder / "good" / "linked")
    os.symlink(secret.parent, folder / "linked class")
    os.symlink(folder, folder / "bad" / "loop")
    table = read_class_folders(folder, TEXTS)
    assert "secret" not in set(table.frame["text"])
    assert {where for where, why in table.bad if "links are not followed" in why} == {
        "texts/good/link.txt",
        "texts/good/linked",
        "texts/linked class",
        "texts/bad/loop",
    }


def test_a_folder_without_two_classes_of_texts_is_a_users_error(tmp_path, write):
    with pytest.raises(UserError, match="there is no such folder"):
        read_class_folders(tmp_path / "none", TEXTS)
    write("x", "texts/good/1.txt")
    with pytest.raises(UserError, match="class folders: 1, at least 2"):
        read_class_folders(tmp_path / "texts", TEXTS)
    write("x", "texts/bad/1.pdf")
    with pytest.raises(UserError, match=r"readable \*.txt files: 1, at least 2 .*texts/bad: this class"):
        read_class_folders(tmp_path / "texts", TEXTS)


def test_the_folder_may_be_the_current_one(folder, write, monkeypatch):
    write("", "texts/good/empty.txt")
    monkeypatch.chdir(folder)
    table = read_class_folders(Path("."), TEXTS)
    assert table.bad == [Bad("texts/good/empty.txt", "it is empty")]
    assert table.where(0) == "texts/bad/9.txt"


def test_bad_rows_up_to_the_share_allowed_pass():
    bad = [Bad("t.csv:2", "it is broken")]
    check_bad([], 0, 0.0, "rows of t.csv")
    check_bad([], 10, 0.0, "rows of t.csv")
    check_bad(bad, 100, 0.01, "rows of t.csv")


def test_too_many_bad_rows_are_a_users_error_that_names_the_first_three_and_the_flag():
    bad = [Bad(f"t.csv:{line}", f"reason {line}") for line in range(2, 7)]
    with pytest.raises(UserError) as caught:
        check_bad(bad, 40, 0.01, "rows of t.csv")
    message = str(caught.value)
    assert message.startswith("5 of 40 rows of t.csv are bad (12.5 %, allowed are 1 %): t.csv:2: reason 2; ")
    assert "t.csv:4: reason 4; ...;" in message
    assert "t.csv:5" not in message
    assert message.endswith("--max-bad 0.125")
    check_bad(bad, 40, 0.125, "rows of t.csv")


@pytest.mark.parametrize(("count", "total"), [(1, 3), (2, 7), (1, 999), (13, 17), (4, 4)])
def test_the_share_the_message_suggests_is_enough(count, total):
    bad = [Bad("t.csv:2", "it is broken")] * count
    with pytest.raises(UserError) as caught:
        check_bad(bad, total, 0.0, "rows")
    check_bad(bad, total, float(str(caught.value).split("--max-bad ")[1]), "rows")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "+3.5", "1e3", ".5", " 7 "], "number"),
        (["1", None, "", "NA", "n/a", "NaN", "null", "None", "?"], "number"),
        ([1, 2.5, float("nan"), None], "number"),
        (["1", "inf"], "category"),
        (["1", "1e999"], "category"),
        (["1_000", "2_000"], "category"),
        (["1", "two"], "category"),
        (["2024-05-31", "1907-03-01", None], "date"),
        (["2024-05-31 12:30", "2024-05-31T12:30:59.25Z", "2024-05-31T12:30:59+02:00"], "date"),
        (["2024-13-31"], "category"),
        (["20240531"], "number"),
        (["31.05.2024", "1.6.2024"], "category"),
        (["red", "green", "red"], "category"),
        (["New York", "Los Angeles"], "category"),
        (["it was very good", "I did not like it", "far from dull"], "text"),
        (["very good indeed"] * 5 + ["not at all good"], "category"),
        ([None, "", "?"], "category"),
        ([], "category"),
    ],
)
def test_a_columns_kind_is_what_its_values_are(values, kind):
    assert column_kind(values) == kind


@pytest.mark.skipif("KERASLOOM_DATA" not in os.environ, reason="needs the data folder KERASLOOM_DATA")
def test_the_titanic_table_is_read_whole():
    table = read_table(Path(os.environ["KERASLOOM_DATA"], "tabular", "titanic.csv"), required=["Survived", "Age"])
    assert len(table.frame) == 891
    assert not table.bad
    assert table.frame["Age"].isna().sum() == 177
    assert column_kind(table.frame["Age"]) == "number"
    assert column_kind(table.frame["Name"]) == "text"
    assert column_kind(table.frame["Sex"]) == "category"
