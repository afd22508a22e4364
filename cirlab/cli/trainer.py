"""The trainer, whose methods are the subcommands: Lightning's, and what it has no method for.

Those run in one process, whatever devices the training needed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from cirlab.command.chat import Chat, QuestionerName
from cirlab.command.export import Export

#: Subcommands that Lightning has no method for.
OWN = ("export", "chat")


class Trainer(L.Trainer):
    """Lightning's, whose methods are the subcommands, with two more."""

    def export(
        self,
        model: Any,
        origin: Export,
        output: str | None = None,
        merged: bool = False,
        overwrite: bool = False,
        ckpt_path: str | None = None,
    ) -> None:
        """Write what a checkpoint learned as a folder that peft, transformers and open_clip load.

        Args:
            model: the method.
            origin: checkpoint and experiment.
            output: the folder to write; null puts it into the run's.
            merged: add adapters to the weights they adapt, instead of writing them alone.
            overwrite: replace a folder that is there.
            ckpt_path: the checkpoint; null takes the best one of the experiment's newest run.
        """
        folder = Path(output) if output else None
        wanted = replace(origin, output=folder, merged=merged, overwrite=overwrite)
        wanted.run(model, convert=self.precision_plugin.convert_module)

    def chat(
        self,
        model: Any,
        talk: Chat,
        root: str | None = None,
        target: str | None = None,
        top: int = 10,
        questioner: QuestionerName = "information_gain",
        answerer: str = "zoo:tiny_mllm",
        llm: str | None = None,
        registry: str | None = None,
        sheet: str | None = None,
        batch_size: int = 32,
        ckpt_path: str | None = None,
    ) -> None:
        """Find an image of a folder by talking at the terminal.

        Args:
            model: the method.
            talk: checkpoint and experiment.
            root: folder of images; null takes pictures of the built-in world.
            target: path of an image whose rank is told after each round.
            top: images that are shown, and that the questioner tells apart.
            questioner: who asks; information_gain asks what tells the images apart that are ranked
                first, list asks one question after the other, llm is the instruction LLM.
            answerer: multimodal LLM or BLIP (hub name, local folder, zoo:name) by whose answers
                information_gain tells images apart.
            llm: instruction LLM (hub name, local folder, zoo:name), the questioner of llm; proposes
                questions to information_gain.
            registry: questions that can be asked: world, photographs, or a YAML file; null takes
                those of the folder's kind.
            sheet: the contact sheet, .png; null: runs/chat/<experiment>.png.
            batch_size: images encoded at once.
            ckpt_path: the checkpoint; null takes the best one of the experiment's newest run.
        """
        wanted = replace(
            talk,
            root=root,
            target=target,
            top=top,
            questioner=questioner,
            answerer=answerer,
            llm=llm,
            registry=registry,
            sheet=Path(sheet) if sheet else None,
            batch_size=batch_size,
        )
        precision = self.precision_plugin
        wanted.run(
            model,
            self.strategy.root_device,
            Console(),
            convert=precision.convert_module,
            arithmetic=precision.forward_context,
        )


def alone(subcommand: str, precision: str | int) -> dict[str, Any]:
    """Trainer arguments of one of `OWN`.

    An export only writes files: weights stay in the precision that they were trained in, and none
    is computed with.
    """
    one_device = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    if subcommand != "export":
        return one_device
    kept = precision if str(precision).endswith("-true") else "32-true"
    return one_device | {"accelerator": "cpu", "precision": kept, "plugins": None}
