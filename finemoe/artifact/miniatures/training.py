"""Train a miniature: `python -m finemoe.artifact.miniatures.training mixtral-mini`. Seeded and resumable, on a GPU if available.

As in the real models, each family's load-balancing loss is enabled. Training follows a cosine schedule over a fixed number of
steps and writes a checkpoint every few minutes. The loss curve and the settings are written next to the model.
"""

import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm.auto import tqdm

from finemoe.artifact.miniatures.architectures import build
from finemoe.artifact.miniatures.corpus import training_texts
from finemoe.artifact.miniatures.tokenizer import EOS, train_tokenizer
from finemoe.errors import FinemoeError
from finemoe.files import atomic_path, write_text
from finemoe.paths import MINIATURES, RESULTS


@dataclass(frozen=True)
class Settings:
    """Training settings; there are batch x length tokens per step."""

    model: str
    steps: int = 1800
    batch: int = 8
    length: int = 256
    peak_rate: float = 2e-3
    warmup_steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.length) < 1:
            raise FinemoeError(f"steps, batch and length must be positive, not {self.steps}, {self.batch}, {self.length}")

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine down to a twentieth of the peak."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Trainer:
    """One training run; `run` resumes from the last checkpoint if there is one.

    Args:
        settings: the training settings.
        folder: folder for checkpoints.
        texts: training documents, and held-out ones by source.
    """

    def __init__(self, settings: Settings, folder: Path, texts: tuple[list[str], dict[str, list[str]]]) -> None:
        self.settings, self._checkpoint = settings, folder / "checkpoint.pt"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = train_tokenizer(texts[0])
        self._tokens = self._encode(texts[0])
        self._held_out = {source: self._encode(documents) for source, documents in texts[1].items()}
        self.model = build(settings.model, settings.seed).to(self.device)
        self._optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=(0.9, 0.95), fused=True)
        self.curve: list[dict[str, float]] = []
        self.step, self.seconds = 0, 0.0

    def run(self, checkpoint_every_s: float = 180.0) -> None:
        """Train to the last step with a progress bar, writing checkpoints."""
        self._resume()
        saved = begin = time.monotonic()
        before = self.seconds
        for step in tqdm(range(self.step, self.settings.steps), initial=self.step, total=self.settings.steps, mininterval=10):
            loss, balance = self._train_step(step)
            self.step, self.seconds = step + 1, before + time.monotonic() - begin
            if step % 50 == 0 or self.step == self.settings.steps:
                self.curve.append(self._point(loss, balance))
            if time.monotonic() - saved > checkpoint_every_s:
                self._save_checkpoint()
                saved = time.monotonic()
        self._save_checkpoint()

    def discard_checkpoint(self) -> None:
        """Remove the checkpoint of a finished run, so that a later run with the same settings starts from scratch."""
        self._checkpoint.unlink(missing_ok=True)

    def held_out_losses(self, num_batches: int = 8) -> dict[str, float]:
        """Mean cross-entropy per token, in nats, over the first held-out sequences of every source."""
        self.model.eval()
        losses = {source: self._mean_loss(tokens, num_batches) for source, tokens in self._held_out.items()}
        self.model.train()
        return losses

    @torch.no_grad()
    def _mean_loss(self, tokens: torch.Tensor, num_batches: int) -> float:
        size = self.settings.batch * self.settings.length
        losses = []
        for begin in range(0, min(num_batches * size, len(tokens) - size + 1), size):
            ids = tokens[begin : begin + size].view(self.settings.batch, -1).to(self.device)
            logits = self.model(input_ids=ids, output_router_logits=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            losses.append(loss.item())
        return float(np.mean(losses))

    def export(self, folder: Path) -> None:
        """Write the model in the standard Hugging Face layout (bf16), with its loss curve and settings."""
        import pandas as pd

        folder.mkdir(parents=True, exist_ok=True)
        model = build(self.settings.model, self.settings.seed)
        model.load_state_dict(self.model.state_dict())
        model.config.output_router_logits = False
        model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        with atomic_path(folder / "training_curve.csv") as path:
            pd.DataFrame(self.curve).to_csv(path, index=False, float_format="%.5f")
        write_text(folder / "training.json", json.dumps(self._facts(), indent=2) + "\n")

    def _facts(self) -> dict[str, Any]:
        return {
            **asdict(self.settings),
            "tokens_seen": self.step * self.settings.batch * self.settings.length,
            "seconds": round(self.seconds),
            "held_out_perplexity": {source: round(math.exp(loss), 3) for source, loss in self.held_out_losses().items()},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "torch": torch.__version__,
            "machine": f"{self.device.type}, {platform.machine()}, {torch.get_num_threads()} thread(s)",
        }

    def _encode(self, documents: list[str]) -> torch.Tensor:
        eos = self.tokenizer.convert_tokens_to_ids(EOS)
        encoded = self.tokenizer(documents, verbose=False)["input_ids"]
        return torch.from_numpy(np.concatenate([[*ids, eos] for ids in encoded]).astype(np.int64))

    def _groups(self) -> list[dict[str, Any]]:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]

    def _batch(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        starts = torch.randint(0, len(self._tokens) - self.settings.length, (self.settings.batch,), generator=generator)
        return torch.stack([self._tokens[start : start + self.settings.length] for start in starts.tolist()]).to(self.device)

    def _train_step(self, step: int) -> tuple[float, float]:
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # Phi's router samples during training
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate(step)
        ids = self._batch(step)
        output = self.model(input_ids=ids, labels=ids)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        balance = output.aux_loss.item()
        return output.loss.item() - self.model.router_aux_loss_coef * balance, balance

    def _point(self, loss: float, balance: float) -> dict[str, float]:
        held_out = {
            f"held_out_perplexity_{source}": math.exp(loss) for source, loss in self.held_out_losses(num_batches=2).items()
        }
        tokens = self.step * self.settings.batch * self.settings.length
        return {
            "step": self.step,
            "tokens": tokens,
            "train_loss_nats": loss,
            **held_out,
            "load_balancing_loss": balance,
        }

    def _save_checkpoint(self) -> None:
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        with atomic_path(self._checkpoint) as path:
            torch.save(state, path)

    def _resume(self) -> None:
        if not self._checkpoint.is_file():
            return
        state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise FinemoeError(f"{self._checkpoint}: belongs to a run with other settings; remove it to train from scratch")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def main(
    model: Annotated[str, typer.Argument(help="mixtral-mini, qwen-mini or phi-mini")],
    steps: Annotated[int, typer.Option(help="optimizer steps")] = Settings.steps,
    batch: Annotated[int, typer.Option(help="sequences per step")] = Settings.batch,
    peak_rate: Annotated[float, typer.Option(help="highest learning rate")] = Settings.peak_rate,
    output: Annotated[Path | None, typer.Option(help="output folder; default: the shipped miniature's")] = None,
    seed: Annotated[int, typer.Option()] = Settings.seed,
) -> None:
    """Train a miniature on its embedded text, resuming from a checkpoint if there is one."""
    settings = Settings(model, steps=steps, batch=batch, peak_rate=peak_rate, seed=seed)
    trainer = Trainer(settings, RESULTS / "training" / model, training_texts())
    trainer.run()
    folder = output or MINIATURES / model
    trainer.export(folder)
    trainer.discard_checkpoint()
    typer.echo((folder / "training.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
