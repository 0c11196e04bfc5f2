"""Pretrain `examples/tiny-phi3`, the small language model that the examples and the tests tune.

A real Phi-3 in everything but size: fused qkv and gate/up projections, byte-level BPE, Phi-3's chat template and
special tokens. It reads gzipped plain text (CC0 books), trains the tokenizer, then the model, and writes a folder that
`AutoModelForCausalLM` and ONNX Runtime GenAI's model builder load.

Three choices make it a good model to fine-tune:

* every special token occurs in the pretraining text, so that no output row is dead: documents begin with `<s>` and end
  with `<|endoftext|>`, and a quarter of them are paragraphs in turn, wrapped in the chat template's own tokens;
* typographic quotes become the ASCII ones that people type;
* Muon for the weight matrices and AdamW for the rest: about half the tokens of AdamW alone for the same loss.

    python examples/pretrain.py --corpus FOLDER --work /tmp/pretrain --out examples/tiny-phi3

It saves its state to --work every few minutes and continues from there when it is started again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np

SPECIAL = ["<|endoftext|>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "\u2060": "", "\xa0": " "})
SEED = 7


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a gzipped text file, one string each, white space collapsed."""
    with gzip.open(path, "rt", encoding="utf-8") as f:
        text = f.read().translate(ASCII)
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def train_tokenizer(files: list[Path], vocab_size: int):
    """A byte-level BPE tokenizer of `vocab_size` entries, the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p for f in files for p in paragraphs(f)), trainer)
    return tokenizer


def documents(files: list[Path], seed: int) -> list[str]:
    """Runs of 1 to 12 consecutive paragraphs as documents, a quarter of them as chats, in random order."""
    rng = random.Random(seed)
    out = []
    for file in files:
        parts, at = paragraphs(file), 0
        while at < len(parts):
            if rng.random() < 0.25:
                turns = parts[at : at + 2 * rng.randint(1, 3)]
                at += len(turns)
                system = f"<|system|>\n{turns.pop(0)}<|end|>\n" if len(turns) % 2 else ""
                roles = ["user", "assistant"] * (len(turns) // 2)
                chat = "".join(f"<|{r}|>\n{t}<|end|>\n" for r, t in zip(roles, turns, strict=True))
                out.append(f"<s>{system}{chat}<|endoftext|>")
            else:
                run = parts[at : at + rng.choice([1, 1, 1, 2, 2, 3, 5, 8, 12])]
                at += len(run)
                joiner = rng.choice(["\n", "\n\n"])
                out.append("<s>" + joiner.join(run) + "<|endoftext|>")
    rng.shuffle(out)
    return out


def tokenize(tokenizer, files: list[Path], seed: int) -> np.ndarray:
    """All documents as one stream of token ids, shape (tokens,), uint16."""
    ids: list[np.ndarray] = []
    docs = documents(files, seed)
    for at in range(0, len(docs), 4096):
        batch = tokenizer.encode_batch(docs[at : at + 4096])
        ids.extend(np.asarray(e.ids, dtype=np.uint16) for e in batch)
    return np.concatenate(ids)


def new_model(args):
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=args.context,
        original_max_position_embeddings=args.context,
        sliding_window=None,
        tie_word_embeddings=True,
        resid_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    return Phi3ForCausalLM(config)


def held_out_loss(model, stream: np.ndarray, context: int, limit: int = 400_000) -> float:
    """Mean cross-entropy per token, in nats, over consecutive windows of `context` tokens."""
    import torch

    model.eval()
    rows = min(len(stream), limit) // context
    total = 0.0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for at in range(0, rows, 16):
            x = torch.from_numpy(stream[at * context : (at + min(16, rows - at)) * context].astype(np.int64))
            x = x.view(-1, context)
            total += model(input_ids=x, labels=x, use_cache=False).loss.item() * len(x)
    model.train()
    return total / rows


def train(args, stream: np.ndarray, valid: np.ndarray) -> tuple[object, dict]:
    import torch

    torch.set_num_threads(args.threads)
    model = new_model(args)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    per_step = args.batch * args.context
    steps = args.tokens // per_step
    rows = len(stream) // args.context
    state_file = Path(args.work) / "state.pt"
    first, log = 0, []
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        first, log = state["step"], state["log"]
        print(f"continuing from step {first} of {steps}", flush=True)
    forward = torch.compile(model) if args.compile else model
    began = time.time()
    for step in range(first, steps):
        # warm up, hold, then go down to nothing over the last 45 %
        rate = min(1.0, (step + 1) / 100, (steps - step) / (0.45 * steps))
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = args.lr * rate
        epoch, at = divmod(step * args.batch, rows - rows % args.batch)
        order = np.random.default_rng(SEED + epoch).permutation(rows)[at : at + args.batch]
        batch = np.stack([stream[i * args.context : (i + 1) * args.context] for i in order]).astype(np.int64)
        x = torch.from_numpy(batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=x, labels=x, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        since = step - first + 1
        if step % 20 == 0:
            speed = since * per_step / (time.time() - began)
            log.append((step, round(loss.item(), 4)))
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {speed:.0f} tokens/s", flush=True)
        if step % 100 == 99 or step == steps - 1:
            Path(args.work).mkdir(parents=True, exist_ok=True)
            states = [o.state_dict() for o in optimizers]
            new = {"model": model.state_dict(), "optimizers": states, "step": step + 1, "log": log}
            torch.save(new, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
        if step % 500 == 499:
            print(f"step {step}: held-out loss {held_out_loss(model, valid, args.context, 100_000):.3f}", flush=True)
        if args.stop_after and since >= args.stop_after:
            break
    return model, {"tokens": steps * per_step, "steps": steps, "corpus_tokens": len(stream)}


def sample(model, tokenizer, prompt: str, tokens: int = 60) -> str:
    import torch

    ids = torch.tensor([[1, *tokenizer.encode(prompt).ids]])
    torch.manual_seed(SEED)
    out = model.generate(ids, max_new_tokens=tokens, do_sample=True, temperature=0.7, top_k=40, pad_token_id=0)
    return tokenizer.decode(out[0].tolist())


CARD = """---
license: cc0-1.0
language: en
pipeline_tag: text-generation
---
# tiny-phi3

A small language model of the Phi-3 architecture, made by `examples/pretrain.py` so that everything here runs without
a network. It writes plausible English sentences and knows nothing: it is there to be fine-tuned in a minute.

| | |
|---|---|
| parameters | {parameters:,}, bfloat16: {layers} layers of {hidden}, {heads} heads, feed-forward {intermediate}, tied |
| tokenizer | byte-level BPE, {vocab:,} entries, Phi-3's special tokens and chat template |
| context | {context} tokens |
| data | {books} CC0 books of Standard Ebooks, {corpus_tokens:,} tokens, a quarter of it as chats |
| training | {tokens:,} tokens ({epochs:.1f} epochs), {steps:,} steps of {batch} x {context}, Muon + AdamW, rate {lr} |
| held out | three books that were not trained on: loss {loss:.3f} nats a token, perplexity {perplexity:.1f} |
| licence | CC0 1.0, as the books |

Typographic quotes were made ASCII. The books are of their time: some of their language is dated.

## Sample

Temperature 0.7, top-k 40, prompt "{prompt}":

> {text}
"""


def save(args, model, tokenizer, facts: dict, valid: np.ndarray) -> None:
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    out = Path(args.out)
    loss = held_out_loss(model, valid, args.context)
    model.eval()
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[0, 5], pad_token_id=0)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=SPECIAL[2:],
        model_max_length=args.context,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    prompt = "The old man opened the door and"
    text = " ".join(sample(model, tokenizer, prompt).split())
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        heads=args.hidden // 64,
        epochs=facts["tokens"] / facts["corpus_tokens"],
        loss=loss,
        perplexity=math.exp(loss),
        books=args.books,
        prompt=prompt,
        text=text,
        **{k: getattr(args, k) for k in ("layers", "hidden", "intermediate", "vocab", "context", "batch", "lr")},
        **facts,
    )
    (out / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="folder with train-*.txt.gz, valid.txt.gz and manifest.json")
    parser.add_argument("--work", required=True, help="folder for the token streams and the state to continue from")
    parser.add_argument("--out", required=True, help="folder that the model is written to")
    parser.add_argument("--tokens", type=int, default=24_000_000)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="sequences in a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile (wants a C++ compiler)")
    parser.add_argument("--stop-after", type=int, default=0, help="stop after so many steps of this run")
    args = parser.parse_args()

    from tokenizers import Tokenizer

    corpus, work = Path(args.corpus), Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    train_files = sorted(corpus.glob("train-*.txt.gz"))
    args.books = len(json.loads((corpus / "manifest.json").read_text())) - 3
    if not (work / "valid.npy").exists():
        tokenizer = train_tokenizer(train_files, args.vocab)
        tokenizer.save(str(work / "tokenizer.json"))
        np.save(work / "train.npy", tokenize(tokenizer, train_files, SEED))
        np.save(work / "valid.npy", tokenize(tokenizer, [corpus / "valid.txt.gz"], SEED))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    stream, valid = np.load(work / "train.npy"), np.load(work / "valid.npy")
    print(f"{len(stream):,} tokens to train on, {len(valid):,} held out", flush=True)
    model, facts = train(args, stream, valid)
    if not args.stop_after:
        save(args, model, tokenizer, facts, valid)


if __name__ == "__main__":
    main()
