"""Translation on Multi30k, English to German: BLEU and time of each network, and of keras.io's transformer example.

python benchmarks/translation.py --data DIR [--quick] [--json FILE] [--only TEXT] [--seed 0]

DIR holds `multi30k.en-de.train.tsv`, `.val.tsv`, `.test.tsv` and, for the last case, `tatoeba.en-hi.tsv`. Every case
but one is a `loom train translation` command: no attention, additive and multiplicative attention at the same size, a
transformer, and English to Hindi. BLEU is sacrebleu's of the test part, of Multi30k lower-cased. Seconds are those of
training with validation, and in all those of the whole command: imports, baselines, translating the test part twice,
report and the check of the saved model included.

`keras.io` is the architecture of keras.io's example of English-to-Spanish translation with a transformer, written from
its description in plain Keras: vectors of words and positions 256 wide, one encoder and one decoder block with 8 heads
and 2,048 hidden units, dropout 0.5 before the output, 15,000 words, RMSprop, batches of 64, greedy decoding. It trains
for as long as the transformer did (`--seconds` if that has not run). Unlike there, punctuation is kept, as words of its
own, because BLEU counts it, and sentences have up to 32 words instead of 20.

FILE gets the results, and a file beside it (`.outputs.json`) all translations of the test part, from which the
differences are bootstrapped: 1,000 resamples of the test sentences, the same ones for both. Each case can be run alone,
and is added to what FILE holds. `--quick` runs all cases on built-in sentences with tiny networks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

COMMON = "--lower --vocabulary-size 4000 --max-length 60 --batch-size 64 --buckets 16 --beam-width 5 --length-penalty 1"
RECURRENT = (
    f"{COMMON} --model lstm --units 256 --depth 1 --dropout 0.3 --epochs 6 --learning-rate 0.002 "
    "--precision mixed_bfloat16"
)
CASES = {
    "no attention": f"{RECURRENT} --attention none",
    "additive attention": f"{RECURRENT} --attention additive",
    "multiplicative attention": f"{RECURRENT} --attention multiplicative",
    "transformer": (
        f"{COMMON} --model transformer --units 128 --depth 3 --heads 4 --feed-forward-units 512 --dropout 0.15 "
        "--epochs 12 --learning-rate 0.002"
    ),
    "keras.io": "",
    "English to Hindi": (
        "--vocabulary-size 2000 --max-length 60 --model transformer --units 128 --depth 2 --dropout 0.3 --epochs 30 "
        "--learning-rate 0.002 --test-fraction 0.1 --max-bad 0.02"
    ),
}
QUICK = "--units 16 --depth 1 --heads 2 --feed-forward-units 16 --epochs 1 --max-train 400 --buckets 1 --jit off"
PAIRS = (
    ("additive attention", "no attention", "beam"),
    ("multiplicative attention", "no attention", "beam"),
    ("transformer", "multiplicative attention", "beam"),
    ("transformer", "keras.io", "greedy"),
)
RESAMPLES = 1000
LENGTH, WORDS, WIDTH, HEADS, HIDDEN = 32, 15_000, 256, 8, 2048
"""Of keras.io's network."""


def main() -> None:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder with the sentence pairs")
    parser.add_argument("--quick", action="store_true", help="built-in sentences and tiny networks")
    parser.add_argument("--json", type=Path, help="file to write the results to; other cases in it stay")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of every case")
    parser.add_argument("--seconds", type=float, default=0.0, help="training time of keras.io's network")
    parser.add_argument("--keras-io", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keras_io:
        print(json.dumps(_keras_io(options)))
        return
    rows, outputs = _earlier(options.json)
    print("| | BLEU, beam | BLEU, greedy | chrF | training, s | in all, s |\n|---|---|---|---|---|---|")
    for name, flags in CASES.items():
        if options.only not in name:
            continue
        found, translations = _case(name, flags, rows, options)
        if options.json:  # where another case may have been written to in the meantime
            rows, outputs = _earlier(options.json)
        rows[name] = {"case": name, "flags": flags, "seed": options.seed, "date": time.strftime("%Y-%m-%d")} | found
        outputs[name] = translations
        print(line(rows[name]), flush=True)
        if options.json:
            _write(options.json, [rows[name] for name in CASES if name in rows], outputs)
    print("\n| | difference of BLEU | 95 % interval |\n|---|---|---|")
    for row in _differences(outputs):
        print(difference_line(row))


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    scores = (f"{row[name]:.1f}" if row[name] is not None else "" for name in ("bleu", "greedy", "chrf"))
    return f"| {row['case']} | {' | '.join(scores)} | {row['training']:.0f} | {row['seconds']:.0f} |"


def difference_line(row: dict[str, Any]) -> str:
    """A row of the table of differences."""
    return f"| {row['case']} | {row['difference']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} |"


def _earlier(file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of cases that ran before."""
    if not file or not file.exists():
        return {}, {}
    rows = {row["case"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}
    beside = file.with_suffix(".outputs.json")
    return rows, json.loads(beside.read_text("utf-8")) if beside.exists() else {}


def _write(file: Path, rows: list[Any], outputs: dict[str, Any]) -> None:
    versions = {package: version(package) for package in ("keras", "tensorflow", "sacrebleu", "sentencepiece")}
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    result = {"rows": rows, "differences": _differences(outputs), "versions": versions, "machine": machine}
    file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    file.with_suffix(".outputs.json").write_text(json.dumps(outputs, ensure_ascii=False), encoding="utf-8")


def _case(name: str, flags: str, rows: dict[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    start = time.perf_counter()
    if name == "keras.io":
        like = rows.get("transformer", {}).get("training", 0.0)
        found, translations = _run_keras_io(options.seconds or like or (5.0 if options.quick else 1200.0), options)
    else:
        found, translations = _train(name, flags, options)
    return found | {"seconds": time.perf_counter() - start}, translations


def _train(name: str, flags: str, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """One command in an empty folder."""
    file = "tatoeba.en-hi.tsv" if name == "English to Hindi" else "multi30k.en-de.train.tsv"
    data = [] if options.quick else ["--data", str((options.data / file).resolve())]
    if options.quick:
        flags = " ".join([QUICK, *re.findall(r"--(?:model|attention) \w+", flags)])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loom", "train", "translation", *data, *flags.split(), "--json"]
        command += ["--seed", str(options.seed)]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(process.stderr)
        result = json.loads(process.stdout.splitlines()[-1])
        report = Path(result["model"]).parent / "report"
        translations = json.loads((report / "translations.json").read_text("utf-8"))
    metrics = result["metrics"]
    found = {"bleu": metrics["test_bleu"], "greedy": metrics["test_greedy_bleu"], "chrf": metrics["test_chrf"]}
    found |= {f"{baseline}_bleu": metrics[f"baseline_{baseline}_bleu"] for baseline in ("copy", "dictionary")}
    found |= {"training": result["timings"]["seconds_training"], "timings": result["timings"]}
    found |= {"validation_loss": metrics["val_loss"], "epoch_seconds": metrics["epoch_seconds"]}
    return found, translations


def _differences(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Differences of BLEU between cases, and between beam and greedy decoding, with bootstrapped 95 % intervals."""
    pairs = [((first, how), (second, how)) for first, second, how in PAIRS]
    pairs += [((name, "beam"), (name, "greedy")) for name in CASES]
    chosen = [pair for pair in pairs if all(outputs.get(name, [{}])[0].get(how) is not None for name, how in pair)]
    rows = []
    for first, second in chosen:
        statistics = [_statistics(outputs[name], how) for name, how in (first, second)]
        if len(statistics[0]) != len(statistics[1]):
            continue
        rng = np.random.default_rng(0)
        count = len(statistics[0])
        samples = [np.arange(count), *(rng.integers(0, count, count) for _ in range(RESAMPLES))]
        each = [_bleu(statistics[0][drawn].sum(0)) - _bleu(statistics[1][drawn].sum(0)) for drawn in samples]
        low, high = np.percentile(each[1:], [2.5, 97.5])
        name = f"{' '.join(first)} - {' '.join(second)}"
        rows.append({"case": name, "difference": each[0], "low": float(low), "high": float(high)})
    return rows


def _statistics(translations: list[dict[str, str]], how: str) -> np.ndarray:
    """What BLEU adds up over sentences, (sentences, 10): matches and totals of four orders, and both lengths."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(lowercase=True, effective_order=True)
    found = [bleu.sentence_score(row[how], [row["reference"]]) for row in translations]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found])


def _bleu(statistics: np.ndarray) -> float:
    from sacrebleu.metrics import BLEU

    counts = statistics.tolist()
    return float(BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)


def _run_keras_io(seconds: float, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    command = [sys.executable, __file__, "--keras-io", "--seconds", str(seconds), "--seed", str(options.seed)]
    command += ["--data", str(options.data), *(["--quick"] if options.quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["found"], result["translations"]


def _keras_io(options: argparse.Namespace) -> dict[str, Any]:
    """Plain Keras: the same sentences, the example's network, as long as the others trained."""
    import keras

    from apps.translation import scores
    from loom.data.tokens import join_words, split_words

    parts = _sentences(options)
    keras.utils.set_random_seed(options.seed)
    spaced = {
        part: [[" ".join(split_words(text.lower())) for text in column] for column in columns]
        for part, columns in parts.items()
    }
    source_words, target_words = (
        keras.layers.TextVectorization(WORDS, standardize=None, output_sequence_length=length)
        for length in (LENGTH, LENGTH + 1)
    )
    source_words.adapt(spaced["train"][0])
    target_words.adapt([f"[start] {text} [end]" for text in spaced["train"][1]])
    numbers = {}
    for part, (sources, targets) in spaced.items():
        target = np.array(target_words([f"[start] {text} [end]" for text in targets]))
        inputs = {"source": np.array(source_words(sources)), "target": target[:, :-1]}
        numbers[part] = (inputs, target[:, 1:], (target[:, 1:] != 0).astype("float32"))
    sizes = [len(words.get_vocabulary()) for words in (source_words, target_words)]
    model = _keras_io_network(*sizes)
    model.compile("rmsprop", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    clock = {"start": time.perf_counter(), "epochs": 0.0}

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training |= time.perf_counter() - clock["start"] > options.seconds
            clock["epochs"] += 64 / len(spaced["train"][0])

    inputs, targets, weights = numbers["train"]
    model.fit(inputs, targets, 64, 1000, sample_weight=weights, callbacks=[Clock()], verbose=0)
    trained = time.perf_counter() - clock["start"]
    vocabulary = target_words.get_vocabulary()
    rows = _greedy(model, numbers["test"][0]["source"], vocabulary)
    texts = [join_words(" ".join(vocabulary[number] for number in row)) for row in rows]
    measured = scores(texts, parts["test"][1], lower=True)
    found = {"bleu": None, "greedy": measured["bleu"], "chrf": measured["chrf"], "training": trained}
    found |= {"epochs": clock["epochs"], "parameters": model.count_params()}
    translations = [
        {"source": source, "reference": reference, "greedy": text}
        for source, reference, text in zip(*parts["test"], texts, strict=True)
    ]
    return {"found": found, "translations": translations}


def _sentences(options: argparse.Namespace) -> dict[str, tuple[list[str], list[str]]]:
    """The parts that the commands read, too."""
    from apps.translation import Config
    from loom.data import hindi
    from loom.data.pairs import read_pairs, split_pairs

    if options.quick:
        config = Config(max_train=400, seed=options.seed)
    else:
        config = Config(data=str(options.data / "multi30k.en-de.train.tsv"), seed=options.seed)
    examples, _ = read_pairs(config, hindi.sentences)
    parts = split_pairs(examples, config)
    return {part: (list(frame["source"]), list(frame["target"])) for part, frame in parts.items()}


def _keras_io_network(source_size: int, target_size: int) -> Any:
    """The example's encoder and decoder, block by block, with Keras' own layers."""
    import keras

    layers, ops = keras.layers, keras.ops

    def embedded(numbers: Any, size: int) -> Any:
        vectors = layers.Embedding(size, WIDTH)(numbers)
        positions = ops.cumsum(ops.ones_like(numbers), axis=1) - 1
        return layers.Add()([vectors, layers.Embedding(LENGTH, WIDTH)(positions)])

    def attended(query: Any, value: Any, valid: Any, causal: bool = False) -> Any:
        attention = layers.MultiHeadAttention(HEADS, WIDTH)
        read = attention(query, value, attention_mask=ops.expand_dims(valid, 1), use_causal_mask=causal)
        return layers.LayerNormalization()(layers.Add()([query, read]))

    def transformed(vectors: Any) -> Any:
        hidden = layers.Dense(WIDTH)(layers.Dense(HIDDEN, activation="relu")(vectors))
        return layers.LayerNormalization()(layers.Add()([vectors, hidden]))

    source = keras.Input((LENGTH,), dtype="int64", name="source")
    target = keras.Input((LENGTH,), dtype="int64", name="target")
    source_valid, target_valid = ops.not_equal(source, 0), ops.not_equal(target, 0)
    vectors = embedded(source, source_size)
    encoded = transformed(attended(vectors, vectors, source_valid))
    vectors = embedded(target, target_size)
    vectors = attended(vectors, vectors, target_valid, causal=True)
    vectors = layers.Dropout(0.5)(transformed(attended(vectors, encoded, source_valid)))
    return keras.Model({"source": source, "target": target}, layers.Dense(target_size, activation="softmax")(vectors))


def _greedy(model: Any, source: np.ndarray, vocabulary: list[str]) -> list[list[int]]:
    """The example's decoding: the whole network once for each word."""
    start, end = vocabulary.index("[start]"), vocabulary.index("[end]")
    target = np.zeros((len(source), LENGTH), "int64")
    target[:, 0] = start
    for place in range(LENGTH - 1):
        outputs = model.predict({"source": source, "target": target}, batch_size=64, verbose=0)
        target[:, place + 1] = outputs[:, place].argmax(axis=-1)
    rows = [row[1:].tolist() for row in target]
    return [row[: row.index(end)] if end in row else row for row in rows]


if __name__ == "__main__":
    main()
