"""The documentation's links lead somewhere, its commands exist, and its numbers are those of the recorded results."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from loom import cli
from loom.app import list_apps, load_app, locate_app
from loom.config import flag, to_dict

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """`tests/...`, `benchmarks/...` and the like in backticks or commands."""
    named = re.findall(
        r"(?:apps|benchmarks|foundations|layers|loom|tests)/[\w/]+\.(?:py|json)", page.read_text(encoding="utf-8")
    )
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_applications_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"^ {4}loom (\w+)|`loom (\w+)", text, re.MULTILINE):
        assert "".join(command) in cli.COMMANDS
    for name in re.findall(r"loom train ([a-z]\w*)(?![\w/])", text):
        assert name in list_apps()


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Flags of all commands, applications and benchmarks."""
    configs = [load_app(locate_app(name)).config() for name in list_apps()]
    found = {flag(name) for config in configs for name in to_dict(config)}
    found |= {"--resume", "--from-run", "--json", "--debug", "--help", "--format", "--output", "--port", "--host"}
    found |= {"--quick", "--figure", "--torch", "--only", "--words", "--steps"}  # benchmarks
    return found | set(re.findall(r"--[a-z][a-z-]+", cli.TUNE_HELP + cli.COMPARE_HELP))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page: Path, flags: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w-])--([a-z][\w-]+)", text):
        assert {f"--{name}", f"--{name.removeprefix('no-')}"} & flags, name


def test_every_application_has_a_page_and_a_line_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in list_apps():
        assert (ROOT / "docs" / f"{name}.md").exists()
        assert f"docs/{name}.md" in readme


def results(name: str) -> dict:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def test_the_sentiment_table_is_the_recorded_one() -> None:
    page = (ROOT / "docs" / "sentiment.md").read_text(encoding="utf-8")
    for row in results("sentiment")["rows"]:
        line = "| {case} | {accuracy:.4f} | {tfidf:.4f} | {first_step:.0f} | {seconds:.0f} |"
        assert line.format(**row) in page


def test_the_tracking_table_is_the_recorded_one() -> None:
    page, found = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8"), results("tracking")
    assert "| an epoch, s | {plain:.3f} | {tracked:.3f} | {percent:.2f} % |".format(**found) in page
    assert "| of it waiting in callbacks | | | {waited:.2f} % |".format(**found) in page
    assert "| store and report, s | | {outside:.2f} | |".format(**found) in page


def test_the_times_on_mnist_are_the_recorded_ones() -> None:
    page, race = (ROOT / "docs" / "images.md").read_text(encoding="utf-8"), results("images")["race"]
    for row in race["rows"]:
        assert f"| {row['seed']} | {row['seconds_to_threshold']:.0f} | {row['accuracy']:.4f} |" in page
    line = "Medians of {ours_seconds:.0f} and {keras_seconds:.0f} seconds: {ratio:.1f} times as fast"
    assert line.format(**race["summary"]) in page
    (best,) = results("images")["full"]
    assert f"give {best['test']:.4f}, in {best['seconds']:.0f} s on" in page
    assert f"neighbours: {best['baseline']:.4f})" in page
    assert f"loom train images --data tfds:mnist {best['flags']}\n" in page


def test_the_table_of_transfer_is_the_recorded_one() -> None:
    page, rows = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8"), results("transfer")["rows"]
    names = {"frozen": "frozen", "fine_tuned": "frozen, then fine-tuned", "from_scratch": "from scratch"}
    for row in rows:
        assert f"| {names[row['case']]} | {row['mean']:.4f} | {row['spread']:.4f} |" in page
    scores = {row["case"]: row["scores"] for row in rows}
    for frozen, fine_tuned, scratch in zip(*(scores[name] for name in names), strict=True):
        assert min(frozen, fine_tuned) > scratch


def test_the_regularizations_are_the_recorded_ones() -> None:
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    few, many = (
        {row["settings"]["regularization"]: row for row in each["variants"]}
        for each in results("images")["regularization"]
    )
    for kind in few:
        numbers = " | ".join(f"{rows[kind][name]:.4f}" for rows in (few, many) for name in ("mean", "spread"))
        assert f"| {kind} | {numbers} |" in page


def test_the_notes_table_is_the_recorded_one() -> None:
    page = (ROOT / "docs" / "mnist_1000.md").read_text(encoding="utf-8")
    for row in results("images")["notes"]:
        assert "| {case} | {train:.3f} | {test:.4f} | {baseline:.4f} |".format(**row) in page
    (best,) = results("images")["thousand"]
    each = ", ".join(f"{run['test']:.4f}" for run in best["runs"])
    assert f"Three seeds give {best['test']:.4f} on the 10,000 test images ({each})" in page


def test_the_table_of_applications_is_the_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / "docs" / "applications.md").read_text(encoding="utf-8")
    line = runpy.run_path(str(ROOT / "benchmarks" / "applications.py"))["line"]
    for row in results("applications")["rows"]:
        assert line(row) in page


def test_the_tables_of_textgen_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page, found = (ROOT / "docs" / "textgen.md").read_text(encoding="utf-8"), results("textgen")
    script = runpy.run_path(str(ROOT / "benchmarks" / "textgen.py"))
    for row in found["rows"]:
        assert script["line"](row) in page
    for row in found["writing"]:
        assert script["writing_line"](row) in page


def test_the_neighbours_of_embeddings_are_the_recorded_ones() -> None:
    page, found = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8"), results("embeddings")
    script = runpy.run_path(str(ROOT / "benchmarks" / "embeddings.py"))
    for row in found["rows"]:
        assert script["line"](row) in page
    for row in found["steps"]:
        assert script["step_line"](row) in page
    assert script["summary"](found) in page
    assert f"benchmarks/embeddings.py --data tinyshakespeare.txt {found['flags']} --json" in page
    (built_in,) = (row for row in results("applications")["rows"] if row["case"] == "embeddings")
    assert built_in["model"] >= 0.9


def test_the_tables_of_translation_are_the_recorded_ones() -> None:
    page = (ROOT / "docs" / "translation.md").read_text(encoding="utf-8")
    found, benchmark = results("translation"), runpy.run_path(str(ROOT / "benchmarks" / "translation.py"))
    for row in found["rows"]:
        assert benchmark["line"](row) in page
    for row in found["differences"]:
        assert benchmark["difference_line"](row) in page


def test_the_table_of_tagging_is_the_recorded_one() -> None:
    page = (ROOT / "docs" / "tagging.md").read_text(encoding="utf-8")
    found, benchmark = results("tagging"), runpy.run_path(str(ROOT / "benchmarks" / "tagging.py"))
    for name, row in found["summary"].items():
        seeds = len({each["seed"] for each in found["rows"]})
        assert benchmark["line"](f"{name}, mean", seeds, row) in page
    for name, row in found["baselines"].items():
        assert benchmark["line"](name, "", row) in page
    softmax, crf = (found["summary"][name]["accuracy"] for name in ("softmax", "CRF"))
    assert softmax >= 0.95
    assert crf >= softmax - 0.004


def test_the_table_of_forecasting_is_the_recorded_one() -> None:
    page, rows = (ROOT / "docs" / "forecasting.md").read_text(encoding="utf-8"), results("forecasting")["rows"]
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "forecasting.py"))
    for row in rows:
        assert benchmark["line"](row) in page
    assert min(row["mse"] for row in rows if "seconds" in row) <= 0.385
    (coverage,) = (row["coverage"] for row in rows if "coverage" in row)
    assert coverage == pytest.approx(0.8, abs=0.03)
    assert f"It holds {100 * coverage:.1f} %" in page


def test_the_table_of_the_chatbot_is_the_recorded_one() -> None:
    page, found = (ROOT / "docs" / "chatbot.md").read_text(encoding="utf-8"), results("chatbot")["metrics"]
    for name, case in (("recorded", "recorded answers"), ("recorded_hurried", "with the middle word missing")):
        row = (found[f"{kind}_{name}"] for kind in ("test", "baseline_nearest", "baseline_one_answer"))
        assert f"| {case} | {' | '.join(f'{value:.3f}' for value in row)} |" in page
    assert found["test_recorded"] >= 0.95


def test_the_tables_of_the_detector_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page, found = (ROOT / "docs" / "detector.md").read_text(encoding="utf-8"), results("detector")
    lines = runpy.run_path(str(ROOT / "benchmarks" / "detector.py"))
    for row in found["rows"]:
        assert lines["line"](row) in page
    for name in ("never", "last_letter", "window"):
        assert lines["baseline_line"](found["rows"][0], name) in page
    assert lines["pipe_line"](found["pipe"]) in page.replace("\n", " ")


def test_the_titanic_table_is_the_recorded_one() -> None:
    page, summary = (ROOT / "docs" / "tabular.md").read_text(encoding="utf-8"), results("titanic")["summary"]
    mean = summary["mean"]
    assert f"| mean | {mean['ours']:.4f} | {mean['boosting']:.4f} |" in page


def test_the_tables_of_recurrent_layers_are_the_recorded_ones() -> None:
    page, found = (ROOT / "docs" / "recurrent.md").read_text(encoding="utf-8"), results("recurrent")
    for name, entry in found["summary"].items():
        assert f"| {name} | {entry['line']} |" in page
    for row in found["memory"]:
        values = [row[f"{side}_{which}"] for which in ("mb", "first_mb") for side in ("ours", "baseline")]
        assert f"| {row['layer']} {row['case']} | {' | '.join(f'{value:.0f}' for value in values)} |" in page


def test_the_tables_of_attention_are_the_recorded_ones() -> None:
    page, found = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8"), results("attention")
    for name, entry in found["summary"].items():
        assert f"| {name} | {entry['line']} |" in page
    for row in found["long"]:
        side = "ours" if row["side"] == "ours" else "Keras"
        assert f"| {side} | {row['steps']:,} | {row['seconds']:.2f} | {row['mb']:.0f} |" in page
    costs = "{cached_seconds:.2f} s with the cache,\n{again_seconds:.2f} s running the prefix"
    assert costs.format(**found["decoding"]) in page
    costs = "costs {early_token_ms:.2f} ms in the\nfirst quarter and {late_token_ms:.2f} ms in the last"
    assert costs.format(**found["decoding"]) in page


def test_the_tables_of_long_memory_are_the_recorded_ones() -> None:
    page, found = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8"), results("memory")
    for row in found["rows"]:
        steps = row["steps"] if row["solved"] else f"not in {row['steps']}"
        line = f"| {row['problem']} | {row['case']} | {row['learning_rate']:g} | {steps} | {row['seconds']:.0f} "
        assert f"{line}| {row['test']:.4f} | {row['baseline']:.4f} |" in page
    for row in found["mackey_glass"]["rows"]:
        assert f"| {row['case']} | {row['error']:.5f} |" in page
    assert f"after {found['mackey_glass']['steps_to_forget']} steps" in page
