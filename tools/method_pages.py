"""Write docs/methods/: a page for each method, from the registry, docstrings and published figures.

python tools/method_pages.py
"""

import inspect
import re
from pathlib import Path

from cktf.bench import published
from cktf.objectives import METHODS, Method

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


def sections(method: Method) -> tuple[str, dict[str, str]]:
    """The class's docstring without its arguments, and what it says of each argument."""
    text = inspect.getdoc(method.objective) or ""
    idea, _, rest = text.partition("\n\nArgs:\n")
    listed, _, _ = rest.partition("\n\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + listed):
        names, colon, said = entry.strip().partition(": ")
        if colon:
            for name in names.split(", "):
                found[name] = " ".join(said.split())
    idea = re.sub(r"\n\n(Attributes|Raises):\n.*", "", idea, flags=re.DOTALL)
    return idea, found


def options(method: Method) -> list[str]:
    """A table of the method's options."""
    said = sections(method)[1]
    if "contrast" in said:
        said |= sections(METHODS["crd"])[1]
    rows = [
        f"| `{name}` | `{parameter.default!r}` | {said.get(name, '')} |"
        for name, parameter in method.options().items()
    ]
    if not rows:
        return []
    return ["## Options", "", "| option | default | |", "|---|---|---|", *rows, ""]


def figures(method: Method) -> list[str]:
    """Published accuracies beside the student alone, and with CKTF's own where they are there."""
    rows = published()
    lines: list[str] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        top1 = {(row.pair, row.method): row.top1 for row in rows if row.dataset == dataset}
        pairs = [p for p in dict.fromkeys(p for p, _ in top1) if (p, method.name) in top1]
        if not pairs:
            continue
        shown = dict.fromkeys(["teacher", "ce", method.name, "cktf", "cktf+kd"])
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


def combination(method: Method) -> str:
    """How the method goes with CKTF."""
    name = method.name
    if name == "ce":
        return "Every method has it beside itself wherever there are labels: `cktf`, `kd`."
    if name == "cktf":
        return "`cktf+kd`, or `cktf+` any other method: see their pages."
    if name == "kd":
        return (
            "`cktf+kd`: cross-entropy 1, KD 1, CKTF with β 0.8 and θ 0.1. KD alone is 0.1 "
            "cross-entropy and 0.9 KD, as published; `kd:1` is KD with the weights it has in sums."
        )
    stage = " after its initialization" if method.first_stage == "yes" else ""
    return (
        f"`cktf+{name}`: this method with its own weight, and 0.8 · (L_penultimate + Σ L_k) of "
        f"CKTF{stage}, as in the paper's table 2. `cktf:0.5+{name}:{method.weight:g}` sets both."
    )


def page(method: Method) -> str:
    """One method's page."""
    module = inspect.getmodule(method.objective)
    source = (inspect.getdoc(module) or "").split("\n\n", 1)[-1]
    lines = [
        f"# {method.name}: {method.title}",
        "",
        sections(method)[0],
        "",
        f"- **weight**: {method.weight:g}",
        f"- **reads**: {'; '.join(READS[name] for name in method.reads)}",
        f"- **works without labels**: {'yes' if method.accepts_unlabeled else 'no'}",
        f"- **first stage, `--init-epochs` long**: {method.first_stage or 'none'}",
        f"- **with CKTF**: {combination(method)}",
        "",
        source,
        "",
        f"    cktf distill --teacher RUN --student NET --data DATA --method {method.name}",
        "",
        *options(method),
        *figures(method),
        "This page is made by `tools/method_pages.py`.",
    ]
    return "\n".join(lines) + "\n"


def contents() -> str:
    """The list of methods."""
    lines = [
        "# Methods",
        "",
        "Names join by `+`, a weight may follow a colon: `cktf+at`, `at:500+sp:1000+kd`.",
        "",
        "| method | what it is | paper | weight | without labels | first stage |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{m.name}]({m.name}.md) | {m.title} | {m.paper} | {m.weight:g} | "
        f"{'yes' if m.accepts_unlabeled else 'no'} | {m.first_stage} |"
        for m in METHODS.values()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the pages."""
    pages = {PAGES / f"{name}.md": page(method) for name, method in METHODS.items()}
    pages[PAGES / "README.md"] = contents()
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
