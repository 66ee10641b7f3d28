"""Write docs/methods/: a page for each method, from the registry, docstrings and published figures.

python tools/method_pages.py
"""

import inspect
import re
from pathlib import Path

from cktf import functional
from cktf.bench import published_accuracies
from cktf.contrast import ContrastConfig
from cktf.objectives import METHODS, PRESETS, Objective, expand_preset

PAGES = Path(__file__).parents[1] / "docs" / "methods"
READS = {
    "logits": "logits of both networks over the same classes",
    "embedding": "the penultimate vector of both networks",
    "stem": "the map after the first convolution",
    "stages": "the map of every stage",
    "blocks": "the maps of the teacher's blocks (unless `match` is `last`)",
    "preacts": "the map of every stage before its activation",
    "labels": "labels",
    "index": "each sample's position in the training set (added for you)",
}


def split_docstring(documented: type) -> tuple[str, dict[str, str]]:
    """Split a class's docstring into its text and its descriptions of arguments or fields."""
    text = inspect.getdoc(documented) or ""
    idea, *sections = re.split(r"\n\n(?:Args|Attributes|Raises):\n", text)
    descriptions: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + sections[0] if sections else ""):
        names, colon, description = entry.strip().partition(": ")
        if colon:
            descriptions |= dict.fromkeys(names.split(", "), " ".join(description.split()))
    return idea, descriptions


def option_table(method: type[Objective]) -> list[str]:
    """A table of the method's options."""
    descriptions = split_docstring(ContrastConfig)[1] | split_docstring(method)[1]
    rows = [
        f"| `{name}` | `{parameter.default!r}` | {descriptions.get(name, '')} |"
        for name, parameter in method.options().items()
    ]
    if not rows:
        return []
    return ["## Options", "", "| option | default | |", "|---|---|---|", *rows, ""]


def published_table(method: str) -> list[str]:
    """Published accuracies of the method, of the student alone and of CKTF."""
    rows = published_accuracies()
    lines: list[str] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        top1 = {(row.pair, row.method): row.top1 for row in rows if row.dataset == dataset}
        pairs = [p for p in dict.fromkeys(p for p, _ in top1) if (p, method) in top1]
        if not pairs:
            continue
        shown = dict.fromkeys(["teacher", "ce", method, "cktf", "cktf+kd"])
        names = {"ce": "student alone"}
        lines += [
            f"### {dataset}",
            "",
            "| | " + " | ".join(p.replace(":", " → ") for p in pairs) + " |",
            "|---" * (len(pairs) + 1) + "|",
        ]
        for name in shown:
            cells = [f"{top1[p, name]:.2f}" if (p, name) in top1 else "" for p in pairs]
            lines.append(f"| {names.get(name, name)} | " + " | ".join(cells) + " |")
        lines.append("")
    if not lines:
        return []
    return ["## Published top-1 accuracy (%)", "", *lines]


def combination(name: str, method: type[Objective]) -> str:
    """How the method is combined with CKTF."""
    if name == "ce":
        return "Every sum has it with weight 1 where there are labels: `cktf`, `kd:1`."
    if name == "cktf":
        return "`cktf+kd`, or `cktf+` any other method: see their pages."
    if name == "kd":
        return (
            "`cktf+kd`: cross-entropy 1, KD 1, CKTF with β 0.8 and θ 0.1. `kd` alone is a preset, "
            f"`{expand_preset(name)[0]}`, as published; `kd:1` has the weights of sums."
        )
    phase = " after its initialization" if method.first_phase() == "yes" else ""
    return (
        f"`cktf+{name}`: each with its own weight, CKTF with β 0.8 and θ 0.1{phase}. "
        f"`paper/cktf+{name}`: 0.8 · (L_penultimate + Σ L_k) of CKTF, as in the paper's table 2. "
        f"`cktf:0.5+{name}:{method.default_weight:g}` sets both weights."
    )


def page(name: str, method: type[Objective]) -> str:
    """One method's page."""
    # The source is in the docstring of the mathematics, where that has a module of its own.
    module = getattr(functional, name, None) or inspect.getmodule(method)
    source = (inspect.getdoc(module) or "").split("\n\n", 1)[-1]
    lines = [
        f"# {name}: {method.title}",
        "",
        split_docstring(method)[0],
        "",
        f"- **weight**: {method.default_weight:g}",
        f"- **reads**: {'; '.join(text for key, text in READS.items() if key in method.requires)}",
        f"- **works without labels**: {'yes' if method.accepts_unlabeled() else 'no'}",
        f"- **first phase, `--init-epochs` long**: {method.first_phase() or 'none'}",
        f"- **with CKTF**: {combination(name, method)}",
        "",
        source,
        "",
        f"    cktf distill --teacher RUN --student NET --data DATA --method {name}",
        "",
        *option_table(method),
        *published_table(name),
        "This page is made by `tools/method_pages.py`.",
    ]
    return "\n".join(lines) + "\n"


def contents() -> str:
    """The list of methods and presets."""
    lines = [
        "# Methods",
        "",
        "Names join by `+`, a weight may follow a colon: `cktf+at`, `at:500+sp:1000+kd`. A method",
        "without a weight has its own, in every sum.",
        "",
        "| method | what it is | paper | weight | without labels | first phase |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{name}]({name}.md) | {method.title} | {method.paper} | {method.default_weight:g} | "
        f"{'yes' if method.accepts_unlabeled() else 'no'} | {method.first_phase()} |"
        for name, method in METHODS.items()
    ]
    lines += [
        "",
        "Presets are names for published combinations; `--dry-run` prints what they stand for.",
        "",
        "| preset | stands for | options | |",
        "|---|---|---|---|",
    ]
    for name, preset in PRESETS.items():
        options = [f"{o}={v}" for values in preset.options.values() for o, v in values.items()]
        lines.append(f"| `{name}` | `{preset.method}` | {', '.join(options)} | {preset.title} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the pages."""
    pages = {PAGES / f"{name}.md": page(name, method) for name, method in METHODS.items()}
    pages[PAGES / "README.md"] = contents()
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
