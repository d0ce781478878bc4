"""The plan of the book: parts, chapters, and the pages around them.

`_toc.yml` is written from this plan (`python -m book.contents`) and names the
chapters that exist; the `{chapter}` role of `book.site` links to those.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent

PARTS = {
    "Attention mechanisms": [
        ("01-multi-query-attention", "Multi-query attention"),
        ("02-grouped-query-attention", "Grouped-query attention"),
        ("03-multi-head-latent-attention", "Multi-head latent attention"),
        ("04-deepseek-attention", "DeepSeek attention"),
    ],
    "Mixture of experts": [
        ("05-standard-moe", "Standard mixture of experts"),
        ("06-deepseek-moe", "DeepSeekMoE"),
    ],
    "Prediction and quantization": [
        ("07-multi-token-prediction", "Multi-token prediction"),
        ("08-fp8-quantization", "FP8 quantization"),
    ],
    "Alignment and training": [
        ("09-grpo", "Group relative policy optimization"),
        ("10-training-infrastructure", "Training infrastructure"),
    ],
    "Advanced training and distillation": [
        ("11-training-pipeline", "Training pipeline"),
        ("12-post-training", "Post-training"),
        ("13-knowledge-distillation", "Knowledge distillation"),
    ],
    "DeepSeek-V3.2 complete architecture": [
        ("14-v32-architecture", "The V3.2 architecture"),
    ],
}
APPENDIX = [
    "walk",
    "notation",
    "glossary",
    "proofs",
    "troubleshooting",
    "api",
    "references",
]
SECTIONS = {"api": ["model", "fp8", "train", "post", "analysis", "teaching"]}
CHAPTERS = {
    int(slug[:2]): (f"chapters/{slug}", title)
    for chapters in PARTS.values()
    for slug, title in chapters
}


def exists(page: str) -> bool:
    """Say whether a page of the plan has been written."""
    return any((ROOT / f"{page}{end}").exists() for end in (".ipynb", ".md"))


def entry(page: str) -> dict:
    """Return a page of the appendix with the pages below it."""
    below = [f"{page}/{name}" for name in SECTIONS.get(page, ())]
    files = [{"file": name} for name in below if exists(name)]
    return {"file": page} | ({"sections": files} if files else {})


def toc() -> dict:
    """Build the table of contents from the pages that exist."""
    parts: list[dict] = []
    for caption, chapters in PARTS.items():
        pages = [f"chapters/{slug}" for slug, _ in chapters]
        files = [{"file": page} for page in pages if exists(page)]
        if files:
            parts.append({"caption": caption, "numbered": 2, "chapters": files})
    files = [entry(page) for page in APPENDIX if exists(page)]
    parts.append({"caption": "Appendix", "chapters": files})
    return {"format": "jb-book", "root": "intro", "parts": parts}


def toc_text() -> str:
    """Return the text of `_toc.yml`."""
    head = (
        "# Written by `python -m book.contents` from the plan in that file.\n"
    )
    return head + yaml.safe_dump(toc(), sort_keys=False)


def main() -> None:
    """Write `_toc.yml` if the pages have changed."""
    path = ROOT / "_toc.yml"
    if not path.exists() or path.read_text(encoding="utf8") != toc_text():
        path.write_text(toc_text(), encoding="utf8")


if __name__ == "__main__":
    main()
