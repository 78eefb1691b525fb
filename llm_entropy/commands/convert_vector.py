"""`llm-entropy convert-vector`: a control vector in another program's format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Union

from jsonargparse import Namespace

from llm_entropy.commands.table import DONE
from llm_entropy.errors import ReportedError
from llm_entropy.settings import ModelSettings
from llm_entropy.settings.configuration import CommandParser
from llm_entropy.settings.control import is_slice

if TYPE_CHECKING:
    from llm_entropy.steering.convert import Target

FORMATS = "gguf, safetensors, npy or lm-eval"


def parser(program: str) -> CommandParser:
    """Return the parser of the command's arguments."""
    convert = CommandParser(
        prog=program,
        description="Write a control vector in another format: for llama.cpp and repeng (.gguf), lm-evaluation-harness "
        "(.pt), or as plain tensors (.safetensors, .npy).",
        allow_abbrev=False,
    )
    convert.add_argument("source", metavar="IN", help="A vector file, or a folder with a file for each block.")
    convert.add_argument("target", metavar="OUT", help="The file to write.")
    convert.add_argument("--to", help=f"{FORMATS}; by default OUT's suffix decides.")
    convert.add_argument("--model", help="The model of the vector, for its sizes: a hub name, folder, or builtin:...")
    convert.add_argument("--num-blocks", type=int, help="Number of blocks of the model, instead of --model.")
    convert.add_argument("--hidden-size", type=int, help="Width of the residual stream, instead of --model.")
    convert.add_argument("--blocks", help="Write only the vectors of these blocks: a slice as 1:, or numbers as 3,5.")
    convert.add_argument("--force", action="store_true", help="Replace OUT if it exists.")
    return convert


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    from llm_entropy.steering.convert import convert_vector
    from llm_entropy.store.log import run_log

    with run_log(quiet=False):
        path = convert_vector(
            chosen.source,
            chosen.target,
            to=chosen.to,
            model=_target(chosen),
            blocks=_blocks(chosen.blocks),
            overwrite=chosen.force,
        )
        print(path)
    return DONE


def _blocks(given: Optional[str]) -> Union[str, list[int], None]:
    """Return a choice of blocks."""
    if given is None or is_slice(given):
        return given
    try:
        return [int(number) for number in given.split(",")]
    except ValueError as error:
        raise ReportedError(f"--blocks: got {given!r}; expected a slice as 1:, or numbers as 3,5") from error


def _target(chosen: Namespace) -> Target:
    """Return what is known of the model."""
    from llm_entropy.steering.convert import Target

    for name in ("num_blocks", "hidden_size"):
        if (size := getattr(chosen, name)) is not None and size < 1:
            raise ReportedError(f"--{name.replace('_', '-')}: got {size}; expected at least 1")
    if chosen.model is None:
        return Target(chosen.num_blocks, chosen.hidden_size)
    if chosen.num_blocks is not None or chosen.hidden_size is not None:
        raise ReportedError("got --model beside --num-blocks or --hidden-size, which it tells; give one of the two")
    from llm_entropy.models.families import outline_model
    from llm_entropy.models.finding import find_model, load_skeleton

    found = find_model("model", ModelSettings(chosen.model))
    blocks = outline_model(load_skeleton(found)).path
    return Target(found.shape.num_blocks, found.shape.hidden_size, found.config.model_type, blocks)
