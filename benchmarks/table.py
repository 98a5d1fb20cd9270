"""The tables and figures of README and docs/, from the kept results: `python table.py` writes them.

A table stands wherever its markers do, `<!-- NAME: written by `make bench-table` -->` and `<!-- /NAME -->`.
Figures in prose are those of figures.py, by prose.py. `--check` writes nothing, but says what is not as the
results give it. `--cuda FILE` prints the table of the CUDA results in FILE.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import figures
import prose
from figures import RESULTS, precisions
from prose import ROOT

TABLE = re.compile(r"(<!-- (\w+): written by `make bench-table` -->\n)(.*?)(?=<!-- /\2 -->)", re.DOTALL)
MODULES = (
    "merge_topk",
    "sparse_linear",
    "training",
    "explain",
    "attack",
    "parser",
)  # and the order in the table
CUDA_HEAD = ("work", "floor, ms", "mach_ext, ms", "of the floor", "beside", "ratio", "target", "met")
SUMMARISED = {
    "decode grid": "decode",
    "decode paths": "decode, the path chosen by cost",
}  # works with one line
HEAD = ("work", "floor, ms", "of it reached", "beside", "ratio", "target", "met")


def render(folder: Path = RESULTS) -> str:
    """The table in Markdown; what stands with a slash is for 1 and 2 threads."""
    results = [r for m in MODULES if (f := folder / f"{m}.json").exists() for r in json.loads(f.read_text())]
    if not results:
        return "No results are kept: `make bench`.\n"
    summarised = [r for r in results if r["work"] in SUMMARISED]
    works: dict[str, dict[int, Any]] = {}  # a work and its shape -> threads -> result
    for result in results:
        if result["work"] not in SUMMARISED:
            works.setdefault(title(result), {})[result.get("threads", 0)] = result
    rows = [row for name, by_threads in works.items() for row in lines(name, by_threads)]
    for work, name in SUMMARISED.items():
        if matching := [r for r in summarised if r["work"] == work]:
            rows.append(summary_line(name, matching))
    text = markdown(HEAD, rows) + "\n" + footnotes(results, summarised)
    measured, predicted = folder / "cuda.json", folder / "cuda_predicted.json"
    file = measured if measured.exists() else predicted
    return text + ("\n" + render_cuda(json.loads(file.read_text())) if file.exists() else "")


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def render_cuda(results: list[dict[str, Any]]) -> str:
    """The table of bench_cuda.py, measured or predicted."""
    rows = []
    for result in results:
        ours, floor = result["providers"]["mach_ext"], result["floor"]
        others = [(r["over"], r["ratio"]) for r in result["ratios"]]
        least = "≥ " if result["predicted"] else ""  # PyTorch's forms at the least that they can take
        rows.append(
            (
                title(result),
                f"{milliseconds(floor['seconds'])} ({floor['bound'].replace('_', ' ')})",
                milliseconds(ours["median"]),
                f"{ours['share_of_floor']:.0%}",
                " / ".join(name for name, _ in others),
                " / ".join(f"{least}{ratio:.3g}" for _, ratio in others),
                *cuda_promise(result, ours),
            )
        )
    devices = ", ".join(sorted({r["device"] for r in results}))
    text = f"**CUDA**, {devices}"
    if results[0]["predicted"]:
        text += (
            ": **predictions**, from the bytes and sums of each kernel; no GPU has run this version yet. "
            "PyTorch's forms are taken at the least that their bytes allow, so ratios are lower bounds: one "
            "below its target is not shown to be missed, nor met"
        )
    return f"{text}.\n\n" + markdown(CUDA_HEAD, rows)


def cuda_promise(result: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str]:
    """Targets of a work, and whether they are met, in the same order."""
    ratios = [r["ratio"] for r in result["ratios"]]
    memory = [r["memory"] for r in result["ratios"] if r.get("memory") is not None]
    texts, words = [], []
    for of, value in result["targets"].items():
        text, met = {
            "share": (f"≥ {value:.0%} of the floor's speed", ours["share_of_floor"] >= value),
            "ms": (f"≤ {value:g} ms", ours["median"] * 1e3 <= value),
            "ratio": (f"≥ {value:g} x", min(ratios) >= value if ratios else None),
            "memory": (f"≤ {value:g} of the memory", max(memory) <= value if memory else None),
        }[of]
        texts.append(text)
        no = "not shown" if of == "ratio" and result["predicted"] else "**no**"  # the ratio is a lower bound
        word = "" if met is None else "yes" if met else no
        if of == "memory" and memory:
            word += f", {' / '.join(f'{share:.2g}' for share in memory)}"
        words.append(word)
    if not texts:
        return "", ""
    return "; ".join(texts), "; ".join(words) + (" (predicted)" if result["predicted"] else "")


def title(result: dict[str, Any]) -> str:
    named = {"kind": "{}", "logits": "logits"}  # the others as "name value"
    shape = " ".join(
        named.get(key, key + " {}").format(short(value))
        for key, value in result["shape"].items()
        if value is not False
    )
    return f"{result['work']}: {shape}"


def lines(name: str, by_threads: dict[int, Any]) -> list[tuple[str, ...]]:
    """One line for each ratio of a work."""
    results = [by_threads[t] for t in sorted(by_threads)]
    rows = []
    for i, ratio in enumerate(results[0]["ratios"]):
        each = [r["ratios"][i] for r in results]
        timed = [r for r in results if "floor" in r and ratio["ours"].startswith("mach_ext")]
        of_floor = [f"{r['providers'][ratio['ours']]['share_of_floor']:.0%}" for r in timed]
        floors = [milliseconds(r["floor"]["seconds"]) for r in timed]
        bound = f" ({results[0]['floor']['bound']})" if floors else ""
        others = " / ".join(dict.fromkeys(e["over"] for e in each))
        which = "" if ratio["ours"] == "mach_ext" else f" ({ratio['ours']})"
        rows.append(
            (
                (name if i == 0 else "same") + which,
                " / ".join(floors) + bound,
                " / ".join(of_floor),
                others,
                " / ".join(f"{e['ratio']:.3g}" for e in each),
                *promise(each),
            )
        )
    return rows


def promise(ratios: list[dict[str, Any]]) -> tuple[str, str]:
    target = ratios[0]["target"]
    if target is None:
        return "", ""
    met = [r["met"] for r in ratios]
    sign = "<" if ratios[0].get("at_most") else "≥"
    return f"{sign} {target:g}", "yes" if all(met) else "**no**" if not any(met) else "**not at all threads**"


def summary_line(name: str, grid: list[dict[str, Any]]) -> tuple[str, ...]:
    worst = {}
    for threads in sorted({r["threads"] for r in grid}):
        worst[threads] = min(r["ratios"][0]["ratio"] for r in grid if r["threads"] == threads)
    points = len({title(r) for r in grid})
    ratios = " / ".join(f"{ratio:.3g}" for ratio in worst.values())
    target = grid[0]["ratios"][0]["target"]
    under = sum(not r["ratios"][0]["met"] for r in grid)
    met = "yes" if not under else f"**no**, {under} of {len(grid)} under"
    return (
        f"{name}, {points} shapes and inputs, the least ratio",
        "",
        "",
        grid[0]["ratios"][0]["among"] + (" forced" if "path" in name else ""),
        ratios,
        f"≥ {target:g}",
        met,
    )


def footnotes(results: list[dict[str, Any]], summarised: list[dict[str, Any]]) -> str:
    text = ["Ratio: median of the other / median of mach_ext, in turn in one run. "]
    text.append(
        "Floor, the longer of moving the bytes at STREAM's speed and doing the sums (what stays in the "
    )
    text.append("cache between calls, or is skipped, can go below it):\n\n")
    floors: dict[str, list[str]] = {}
    for result in results:
        if "floor" in result:
            names = floors.setdefault(result["floor"]["how"], [])
            names += [] if result["work"].split(" ")[0] in names else [result["work"].split(" ")[0]]
    text += [f"* {', '.join(works)}: {how}.\n" for how, works in floors.items()]
    for result in summarised:
        ratio = result["ratios"][0]
        if not ratio["met"]:
            text.append(f"* Under: {title(result)}, {result['threads']} threads: {ratio['ratio']:.2f}.\n")
    machines = {(r["cpu"], r["isa"], r["versions"]["torch"]) for r in results}
    streams = [r["stream_gb_per_s"] for r in results if "stream_gb_per_s" in r]
    for cpu, isa, torch in sorted(machines):
        text.append(f"* Machine: {cpu}, {isa}; torch {torch}.\n")
    if streams:
        text.append(f"* STREAM triad in these runs: {min(streams):.0f} ... {max(streams):.0f} GB/s.\n")
    return "".join(text)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def short(number: Any) -> str:
    if isinstance(number, int) and number % 1000 == 0 and number >= 10_000:
        return f"{number // 1_000_000}M" if number % 1_000_000 == 0 else f"{number // 1000}K"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def faithfulness(folder: Path = RESULTS) -> str:
    """The short form of what studies/faithfulness.py found: a row a dataset and R."""
    orders = ("integrated gradients", "gradient x input", "ablation", "random")
    head = ("data", "R", "IG", "gradient x input", "ablation", "random", "IG - random", "IG across seeds")
    rows = [(*head, "right: signals", "collisions", "signals of their scores"), ("---",) * (len(head) + 3)]
    for r in json.loads((folder / "faithfulness.json").read_text())["results"]:
        areas = [f"{r['areas'][order]['deletion'][0]:.3f}" for order in orders]
        mean, low, high = r["IG minus"]["random"]["deletion"]
        margin = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        right = []
        for verdict in ("signal", "collision"):
            checks = [check[verdict] for check in r["collision check"] if check[verdict][0]]
            count = sum(n for n, _ in checks)
            right.append(f"{sum(n * share for n, share in checks) / count:.0%} of {count}" if count else "-")
        alike = [c["signals of those scores"] for c in r["collision check"]]
        alike = [share for share in alike if share is not None]
        right.append(f"{sum(alike) / len(alike):.0%}" if alike else "-")
        rows.append((r["dataset"], str(r["R"]), *areas, margin, f"{r['stability'][0]:.2f}", *right))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def robustness(folder: Path = RESULTS) -> str:
    """Of what studies/robustness.py found: P@1 and the share of it that is kept, a row a model."""
    record = json.loads((folder / "robustness.json").read_text())
    at = {eps: i for i, eps in enumerate(record["epsilons"])}
    head = (
        "data",
        "",
        "clean P@1",
        "FGSM, loss: P@1 at 0.01 / 0.03 / 0.1",
        "kept at 0.03",
        "half kept at eps",
    )
    head += ("FGSM, margin: P@1 at 0.01 / 0.03 / 0.1", "kept at 0.03")
    rows = [(*head, "PGD, loss: kept at 0.03", "transfer", "noise: kept at 0.1"), ("---",) * (len(head) + 3)]
    for r in record["models"]:
        value = r["value"] if r["axis"] == "merge" else f"{r['axis']} = {r['value']}"
        fgsm, margin, pgd = r["fgsm"], r["margin"], r["pgd"]
        rows.append(
            (
                r["dataset"],
                value,
                " / ".join(f"{p:.3f}" for p in r["clean P@1 by seed"]),
                " / ".join(f"{fgsm['P@1'][at[eps]][0]:.3f}" for eps in (0.01, 0.03, 0.1)),
                _interval(fgsm["P@1 kept"][at[0.03]]),
                _interval(fgsm["P@1 half"], 3),
                " / ".join(f"{margin['P@1'][at[eps]][0]:.3f}" for eps in (0.01, 0.03, 0.1)),
                _interval(margin["P@1 kept"][at[0.03]]),
                f"{pgd['P@1 kept'][at[0.03]][0]:.2f}",
                f"{r['transfer']['P@1 kept'][at[0.03]][0]:.2f}"
                if "transfer" in r and r["merge"] == "mean_logit"
                else "",
                f"{r['noise']['P@1 kept'][at[0.1]][0]:.2f}",
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _interval(values: list[float | None], digits: int = 2) -> str:
    """None is infinite."""
    value, low, high = ("> 0.3" if v is None else f"{v:.{digits}f}" for v in values)
    return f"{value} [{low}, {high}]"


def certified(folder: Path = RESULTS) -> str:
    """Of what studies/certified.py found: P@1, a row a threat model and model."""
    rows = []
    for name, record in json.loads((folder / "certified.json").read_text())["results"].items():
        cells = []
        for size in record["sizes"]:
            low, high = (100 * p for p in size["robust P@1"])
            attacked = 100 * min(p for key, p in size.items() if key.startswith("attacked"))
            cell = f"{size['epsilon']:g}: **{low:.1f}** {high:.1f} ({attacked:.1f})"
            cells.append(cell if size["epsilon"] else f"{low:.1f}")
        cells += [""] * (6 - len(cells)) + [f"{record['zero']['P@1'][1]:.3g}"]
        rows.append((name, *cells))
    return markdown(("threat model, model", "clean", *(f"size {i}" for i in range(1, 6)), "zero at"), rows)


def threats(folder: Path = RESULTS) -> str:
    """P@1 of each threat model and size, beside noise of the same kind and size."""
    rows = [("data", "threat model", "clean", *(f"size {i}" for i in range(1, 7))), ("---",) * 9]
    for r in json.loads((folder / "robustness.json").read_text())["threats"]:
        cells = [
            f"{e['epsilon']:g}: **{e['metrics']['P@1']:.3f}** ({e['random']['P@1']:.3f})"
            for e in r["adversarial"]
        ]
        rows.append((r["dataset"], r["threat_model"], f"{r['clean']['P@1']:.3f}", *cells))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


# A dataset's labels, and what `mach-ext train` makes of it without a flag: the system of studies/peers.py,
# and that with hidden layers that is re-ranked by neighbours.
DEFAULTS = {
    "wordnet": (20_430, "mach_ext", "mach_ext and neighbours"),
    "eurlex57k": (4_271, "mach_ext (SVM)", "mach_ext and neighbours"),
    "tibkat": (41_218, "mach_ext", "mach_ext and neighbours"),
    "bibtex": (159, "mach_ext (rows as given)", "mach_ext (rows as given) and neighbours"),
}
HALF = (  # systems of studies/peers.py with R x B at most L / 2
    ("eurlex57k", "mach_ext (SVM, R 8, B 256)", "8, 256, SVMs"),
    ("eurlex57k", "mach_ext (R 8, B 256)", "8, 256"),
    ("eurlex57k", "mach_ext (R 4, B 512)", "4, 512"),
    ("wordnet", "mach_ext (R 8, B 1024)", "8, 1,024"),
    ("wordnet", "mach_ext (R 4)", "4, 2,048"),
    ("tibkat", "mach_ext (R 8)", "8, 2,048"),
    ("bibtex", "mach_ext (R 4, B 16)", "4, 16"),
)


def final_results(folder: Path = RESULTS) -> dict[tuple[str, str], Any]:
    """The final figures of studies/peers.py by dataset and system."""
    kept = json.loads((folder / "peers.json").read_text())
    return {(r["dataset"], r["system"]): r for r in kept if r["split"] == "test"}


def best_other(kept: dict[tuple[str, str], Any], dataset: str) -> dict[str, Any]:
    """The result of the system with the best P@1 that is not mach_ext."""
    others = [r for (of, system), r in kept.items() if of == dataset and not system.startswith("mach_ext")]
    return max(others, key=lambda r: r["metrics"]["P@1"])


def standing(folder: Path = RESULTS) -> str:
    """The defaults beside the best other system, from what studies/peers.py found."""
    kept = final_results(folder)
    rows = []
    for dataset, (labels, system, near) in DEFAULTS.items():
        ours, other = kept[dataset, system], best_other(kept, dataset)
        cells = (precisions(ours), f"{ours['training seconds']:.0f}", precisions(kept[dataset, near]))
        cells += (f"{other['system']}: {precisions(other)}", f"{other['training seconds']:.0f}")
        rows.append((dataset, f"{labels:,}", *cells))
    head = ("data", "labels", "mach_ext", "training, s", "hidden layers, neighbors")
    return markdown((*head, "the best other system", "training, s"), rows)


def half(folder: Path = RESULTS) -> str:
    """Models with R x B at most L / 2 beside the best other system, from what studies/peers.py found."""
    kept = final_results(folder)
    rows = []
    for dataset, system, sizes in HALF:
        ours, other = kept[dataset, system], best_other(kept, dataset)["metrics"]
        beyond = (f"{100 * (ours['metrics'][f'P@{k}'] - other[f'P@{k}']):+.2f}" for k in (1, 3, 5))
        seconds = f"{ours['training seconds']:.0f}"
        rows.append((dataset, sizes, precisions(ours), seconds, " / ".join(beyond)))
    return markdown(("data", "R, B", "P@1 / P@3 / P@5", "training, s", "minus the best other system's"), rows)


def peers(folder: Path = RESULTS) -> str:
    """What studies/peers.py found: a row a system, by dataset; the final figures, then those on dev."""
    kept = json.loads((folder / "peers.json").read_text())
    ks = (1, 3, 5)
    head = ("system", *(" / ".join(f"{name}@{k}" for k in ks) for name in ("P", "nDCG", "PSP")), "R@50")
    head += ("training, s", "ms a document, single / batch", "MB")
    text = ""
    for split, about in (("test", "final"), ("dev", "dev")):
        for name in sorted({r["dataset"] for r in kept if r["split"] == split}):
            rows: list[tuple[str, ...]] = []
            results = [r for r in kept if (r["dataset"], r["split"]) == (name, split)]
            for r in sorted(results, key=lambda r: -r["metrics"]["P@1"]):
                scores = r["metrics"]
                measures = (
                    " / ".join(f"{100 * scores[f'{m}@{k}']:.2f}" for k in ks) for m in ("P", "nDCG", "PSP")
                )
                times = r["ms a document"]
                ms = f"{times['single']:.3g} / {times['batch']:.3g}"
                size = f"{r['bytes'] / 1e6:.1f}"
                recall = f"{100 * scores['R@50']:.2f}"
                rows.append((r["system"], *measures, recall, f"{r['training seconds']:.0f}", ms, size))
            sizes = f"{results[0]['documents']:,} documents learnt from, {results[0]['asked']:,} asked"
            text += f"**{name}**, {about}: {sizes}\n\n"
            text += markdown(head, rows) + "\n"
    return text


def levers(folder: Path = RESULTS) -> str:
    """What studies/levers.py found: a row a lever, by dataset, the best mean P@1 first."""
    kept = json.loads((folder / "levers.json").read_text())
    head = ("data", "lever", "P@1 / P@3 / P@5, mean of the seeds", "P@1 of each seed", "R@50")
    head += ("training, s", "million parameters")
    rows = []
    for name in sorted({r["dataset"] for r in kept}):
        by_lever: dict[str, list[dict[str, Any]]] = {}
        for r in kept:
            if r["dataset"] == name:
                by_lever.setdefault(r["lever"], []).append(r)

        def mean(lever: str, metric: str, by_lever: Any = by_lever) -> float:
            values = [r["metrics"][metric] for r in by_lever[lever]]
            return 100 * sum(values) / len(values)

        for lever in sorted(by_lever, key=lambda lever: -mean(lever, "P@1")):
            runs = by_lever[lever]
            seconds = sum(r["training seconds"] for r in runs) / len(runs)
            rows.append(
                (
                    name,
                    lever,
                    " / ".join(f"{mean(lever, f'P@{k}'):.2f}" for k in (1, 3, 5)),
                    ", ".join(f"{100 * r['metrics']['P@1']:.2f}" for r in runs),
                    f"{mean(lever, 'R@50'):.2f}",
                    f"{seconds:.0f}",
                    f"{runs[0]['parameters'] / 1e6:.1f}",
                )
            )
    return markdown(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "benchmarks": render,
    "certified": certified,
    "faithfulness": faithfulness,
    "half": half,
    "levers": levers,
    "peers": peers,
    "robustness": robustness,
    "standing": standing,
    "threats": threats,
}


def rewrite(text: str, lines: list[prose.Line]) -> str:
    """A file's text with the tables and figures of the results."""
    return TABLE.sub(lambda match: match[1] + TABLES[match[2]](), prose.write_figures(text, lines))


def faults(texts: dict[str, str], lines: list[prose.Line]) -> Iterator[str]:
    """What in the files is not as the results give it."""
    for name, text in texts.items():
        pairs = zip_longest(text.split("\n"), rewrite(text, lines).split("\n"), fillvalue="")
        if wrong := next(((i, new) for i, (old, new) in enumerate(pairs, 1) if old != new), None):
            yield f"{name}, line {wrong[0]}: must be {wrong[1].strip()!r}; `make bench-table` writes it"
        if name.endswith(".md"):
            yield from (f"{name}, {fault}" for fault in prose.faults(text, lines))
    everything = "\n".join(texts.values())
    for piece, *_ in lines:
        if not prose.pattern(piece).search(everything):
            yield f"figures.py: no file has {piece!r}"
    for name in TABLES.keys() - {match[2] for match in TABLE.finditer(everything)}:
        yield f"table.py: no file has the table {name!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--cuda", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.cuda is not None:
        print(render_cuda(json.loads(args.cuda.read_text())))
        return
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in prose.sources()}
    lines = figures.lines()
    if args.check and (wrong := list(faults(texts, lines))):
        raise SystemExit("\n".join(wrong))
    for name, text in texts.items():
        if (new := rewrite(text, lines)) != text and not args.check:
            (ROOT / name).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
