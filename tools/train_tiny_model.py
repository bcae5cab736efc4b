"""Train the tiny causal language model that ships in ``scoring_service/models/tiny``.

One file does everything: it builds the corpus, trains a byte-level BPE tokenizer, trains a
small Llama and saves both in the ordinary Hugging Face layout, with ``training.json`` recording
how it was made.  It runs on a CPU and needs no network once its two inputs are there:

* The Python documentation in HTML form *with its reStructuredText sources*, i.e. a folder with
  ``_sources/`` in it.  On Debian or Ubuntu, without installing anything::

      apt-get download python3.11-doc
      dpkg-deb -x python3.11-doc_*.deb /tmp/pydoc

  after which the folder is ``/tmp/pydoc/usr/share/doc/python3.11/html``.  Building CPython's
  ``Doc`` folder with ``make html`` gives the same layout.
* The installed ``numpy`` package: its docstrings are read from the running interpreter.

Train, then look at what the model says::

    python tools/train_tiny_model.py --python-doc /tmp/pydoc/usr/share/doc/python3.11/html
    python tools/train_tiny_model.py --show
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import inspect
import json
import math
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "scoring_service" / "models" / "tiny"
LICENCES = {
    "python": "PSF-2.0, code examples also 0BSD; copyright Python Software Foundation",
    "numpy": "BSD-3-Clause; copyright NumPy Developers",
}
SIZE_LIMIT = 3_000_000
VOCAB_SIZE = 2048
BOS = "<|endoftext|>"
BOS_ID = 0
MAX_POSITIONS = 4096
LENGTH = 512  # tokens in a training row, and
LONG_LENGTH = 2048  # in the rows of the last steps
LONG_SHARE = 0.15
EVALUATED_LENGTHS = (LENGTH, 1024, LONG_LENGTH, MAX_POSITIONS)
HELD_OUT_PERCENT = 3

NUMPY_MODULES = (
    *("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.ma", "numpy.ma.mrecords"),
    *("numpy.strings", "numpy.char", "numpy.rec", "numpy.testing", "numpy.dtypes", "numpy.matlib"),
    *("numpy.exceptions", "numpy.ctypeslib", "numpy.typing", "numpy.lib", "numpy.lib.recfunctions"),
    *("numpy.lib.format", "numpy.lib.scimath", "numpy.lib.stride_tricks", "numpy.lib.mixins"),
    *("numpy.polynomial", "numpy.polynomial.polynomial", "numpy.polynomial.chebyshev"),
    *("numpy.polynomial.legendre", "numpy.polynomial.laguerre", "numpy.polynomial.hermite"),
    *("numpy.polynomial.hermite_e", "numpy.polynomial.polyutils"),
)

# Release notes and licence texts are long lists of names and links, not documentation.
SKIPPED = re.compile(r"^(whatsnew/|(about|bugs|contents|copyright|license)\.rst)")
EMAIL = re.compile(r"[\w.+-]+@(?!(?:[\w-]+\.)*example\b)[\w-]+(?:\.[\w-]+)+")
AUTHOR = re.compile(r"^\s*(\.\. (module|section|code)author::|:(Author|Contact)s?:)", re.IGNORECASE)

# Pieces that BPE may not merge across.  Runs of one punctuation mark are a piece of their own, so
# that "range(" or "'__main__':" is split the same way wherever a prompt happens to end.
PIECES = r" ?\p{L}+|\p{N}| ?([^\s\p{L}\p{N}])\1*|\n+|[^\S\n]+(?!\S)|\s"

PROMPTS = (
    "import numpy as",
    ">>> import numpy as",
    "def __init__(self",
    "for i in range",
    "if __name__ == '__main__'",
    ">>> import",
    ".. versionadded:: 3",
    "Return the",
    "raise ValueError",
    "        raise ValueError",
    "Returns\n-------\nout :",
)


@dataclass(frozen=True)
class Document:
    """One text of the corpus; documents with equal ``key`` stay on one side of the split."""

    source: str
    key: str
    text: str


def clean(text: str) -> str:
    """Drop lines that name a person's address, and trailing blanks."""
    lines = text.expandtabs(8).splitlines()
    kept = [line.rstrip() for line in lines if not (EMAIL.search(line) or AUTHOR.match(line))]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(kept)).strip("\n") + "\n"


def python_documents(html: Path) -> Iterator[Document]:
    """Yield the reStructuredText pages of the Python documentation."""
    sources = html / "_sources"
    for path in sorted(sources.rglob("*.rst.txt")):
        name = path.relative_to(sources).as_posix()
        if not SKIPPED.match(name):
            yield Document("python", name, clean(path.read_text(encoding="utf-8")))


def numpy_documents() -> Iterator[Document]:
    """Yield each docstring of numpy's public modules once, headed by its name and signature."""
    seen: set[str] = set()
    for module_name in NUMPY_MODULES:
        module = importlib.import_module(module_name)
        items: dict[str, Any] = {module_name: module}
        for name, item in sorted(vars(module).items()):
            if name.startswith("__") or not callable(item):
                continue
            if not (getattr(item, "__module__", None) or "numpy").startswith("numpy"):
                continue
            items[f"{module_name}.{name}"] = item
            members = sorted(vars(item).items()) if inspect.isclass(item) else []
            items |= {f"{module_name}.{name}.{m}": value for m, value in members if m[:2] != "__"}
        for name, item in items.items():
            doc = inspect.getdoc(item)
            if not isinstance(doc, str) or len(doc) < 80 or doc in seen:
                continue
            seen.add(doc)
            try:
                signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(item)))
            except (TypeError, ValueError):
                signature = ""
            yield Document(
                "numpy", name.rpartition(".")[2].lower(), clean(f"{name}{signature}\n\n{doc}")
            )


def is_held_out(document: Document) -> bool:
    """Assign about HELD_OUT_PERCENT of the keys, always the same ones, to the held-out part."""
    return hashlib.sha256(document.key.encode()).digest()[0] < 256 * HELD_OUT_PERCENT / 100


def train_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=BOS,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def encode(tokenizer: transformers.PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Encode documents into one stream, each ended by the end-of-text token."""
    rows = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.tensor([token for row in rows for token in [*row.ids, BOS_ID]])


def windows(stream: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Cut rows of ``length`` tokens: the start token, then the stream from each start on."""
    rows = stream[starts[:, None] + torch.arange(length - 1)]
    return torch.cat([torch.full((len(rows), 1), BOS_ID), rows], dim=1)


def batches(
    stream: torch.Tensor, line_starts: torch.Tensor, length: int, rows: int, seed: int
) -> Iterator[torch.Tensor]:
    """Yield shuffled batches for ever; each epoch covers the stream from a new random offset.

    A row starts at the beginning of a line, so that the model learns to go on from short prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    line_starts = line_starts[line_starts < len(stream) - length]
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        ideal = torch.arange(offset, int(line_starts[-1]), length - 1)
        starts = line_starts[torch.searchsorted(line_starts, ideal)]
        for chunk in starts[torch.randperm(len(starts), generator=generator)].split(rows):
            yield windows(stream, chunk, length)


def next_token_loss(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the rows' tokens, each given the ones before it."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Any, stream: torch.Tensor, length: int) -> float:
    """Mean loss in nats per token over consecutive windows of the stream."""
    starts = torch.arange(0, len(stream) - length + 1, length - 1)
    losses = [
        float(next_token_loss(model, windows(stream, one, length))) for one in starts.split(1)
    ]
    return sum(losses) / len(losses)


def train(
    args: argparse.Namespace, tokenizer: Any, stream: torch.Tensor, held_out: torch.Tensor
) -> tuple[Any, float]:
    """Train a model; return it and the mean loss of the last steps.

    The learning rate warms up, stays, and falls linearly to zero over the second half.  Rows are
    short at first; the last ones are long, so that the model is not lost at later positions.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
    )
    model: Any = LlamaForCausalLM(config)
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    newlines = [number for piece, number in tokenizer.get_vocab().items() if set(piece) == {"Ċ"}]
    line_starts = torch.isin(stream, torch.tensor([BOS_ID, *newlines])).nonzero().flatten() + 1
    short, long = (
        batches(stream, line_starts, length, args.tokens // length, args.seed)
        for length in (LENGTH, LONG_LENGTH)
    )
    started, losses = time.monotonic(), []
    for step in range(1, args.steps + 1):
        progress = step / (args.steps + 1)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = args.lr * min(1.0, progress / 0.02, (1.0 - progress) / 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, next(short if progress < 1 - LONG_SHARE else long))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            mean, seconds = sum(losses[-50:]) / 50, time.monotonic() - started
            print(f"step {step}/{args.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
        if step % args.save_every == 0:
            save(model, tokenizer, args.out, None)
            print(f"held-out loss {held_out_loss(model, held_out, LENGTH):.4f}", flush=True)
    return model, sum(losses[-100:]) / len(losses[-100:])


def save(model: Any, tokenizer: Any, out: Path, record: dict[str, Any] | None) -> None:
    """Save weights in bfloat16 and everything else, replacing the files in ``out`` one by one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if record is not None:
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            Path(folder, "training.json").write_text(text, encoding="utf-8")
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)


def measures(documents: list[Document]) -> dict[str, Any]:
    """Count and hash documents: SHA-256 of their texts in order, each followed by a NUL."""
    data = b"".join(d.text.encode() + b"\0" for d in documents)
    return {
        "documents": len(documents),
        "bytes": len(data) - len(documents),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def build(args: argparse.Namespace) -> None:
    """Make the model folder from the two sources."""
    started = time.monotonic()
    documents = [*python_documents(args.python_doc), *numpy_documents()]
    parts = {
        "train": [d for d in documents if not is_held_out(d)],
        "held_out": [d for d in documents if is_held_out(d)],
    }
    tokenizer = train_tokenizer([d.text for d in parts["train"]])
    streams = {name: encode(tokenizer, [d.text for d in part]) for name, part in parts.items()}
    sizes = {n: {**measures(part), "tokens": len(streams[n])} for n, part in parts.items()}
    print(json.dumps(sizes, indent=2), flush=True)
    model, train_loss = train(args, tokenizer, streams["train"], streams["held_out"])

    save(model, tokenizer, args.out, None)
    stored = AutoModelForCausalLM.from_pretrained(args.out).float()
    losses = {n: held_out_loss(stored, streams["held_out"], n) for n in EVALUATED_LENGTHS}
    unrounded = held_out_loss(model, streams["held_out"], LENGTH)
    tokens_per_byte = sizes["held_out"]["tokens"] / sizes["held_out"]["bytes"]
    options = (args.python_doc / "_static" / "documentation_options.js").read_text("utf-8")
    version = re.search(r"VERSION: '([^']*)'", options)
    sources = (
        ("python", "Python documentation, reStructuredText sources", version[1] if version else ""),
        ("numpy", "NumPy docstrings", np.__version__),
    )
    words = ["HTML" if word == str(args.python_doc) else word for word in sys.argv[1:]]
    libraries = (torch, transformers, tokenizers, safetensors, np)
    record = {
        "command": shlex.join(["python", "tools/train_tiny_model.py", *words]),
        "seed": args.seed,
        "python": platform.python_version(),
        "libraries": {library.__name__: library.__version__ for library in libraries},
        "corpus_sources": [
            {"name": name, "version": version, "licence": LICENCES[source]}
            | measures([d for d in documents if d.source == source])
            for source, name, version in sources
        ],
        "corpus": measures(documents),
        "corpus_parts": sizes,
        "sha256_is_of": "the documents' UTF-8 texts in order, each followed by a NUL byte",
        "parameters": model.num_parameters(),
        "steps": args.steps,
        "tokens_per_step": args.tokens,
        "threads": args.threads,
        "learning_rate": args.lr,
        "row_lengths": {"first": LENGTH, "last": LONG_LENGTH, "share_of_last": LONG_SHARE},
        "final_train_loss": round(train_loss, 4),
        "held_out_loss": round(losses[LENGTH], 4),
        "held_out_loss_before_bfloat16": round(unrounded, 4),
        "held_out_bits_per_byte": round(losses[LENGTH] / math.log(2) * tokens_per_byte, 4),
        "held_out_loss_by_window": {str(n): round(loss, 4) for n, loss in losses.items()},
        "loss_is": "nats per token; held out: stored bfloat16 weights, computed in float32",
        "wall_seconds": round(time.monotonic() - started),
    }
    save(model, tokenizer, args.out, record)
    total = sum(path.stat().st_size for path in args.out.iterdir())
    print(json.dumps(record, indent=2), f"\nfolder: {total} bytes")
    if total >= SIZE_LIMIT:
        raise SystemExit(f"the folder exceeds {SIZE_LIMIT} bytes")


def quoted(text: str) -> str:
    """Write text as a JSON string that may stand in a cell of a Markdown table."""
    return "`" + json.dumps(text).replace("`", r"\u0060").replace("|", r"\u007c") + "`"


@torch.no_grad()
def show(folder: Path) -> None:
    """Print, as Markdown, the five likeliest next tokens after some prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    print("| prompt | five likeliest next tokens, with probability |\n|---|---|")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        best = model(ids).logits[0, -1].softmax(-1).topk(5)
        cells = (
            f"{quoted(tokenizer.decode([number]))} {probability:.3f}"
            for probability, number in zip(*map(torch.Tensor.tolist, best), strict=True)
        )
        print(f"| {quoted(prompt)} | {', '.join(cells)} |")


def main() -> None:
    """Parse the command line, then train or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python-doc", type=Path, help="HTML documentation holding _sources/")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the model folder")
    parser.add_argument("--show", action="store_true", help="query the model instead of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--lr", type=float, default=0.01, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="more are faster on an idle machine")
    parser.add_argument("--save-every", type=int, default=500, help="steps between interim saves")
    args = parser.parse_args()
    if args.show:
        show(args.out)
    elif args.python_doc is None:
        parser.error("--python-doc is required for training")
    else:
        build(args)


if __name__ == "__main__":
    main()
