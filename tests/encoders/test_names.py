"""Weights that are sought on a hub, with and without a connection to it."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, is_offline_mode
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cirlab.encoders import names
from cirlab.encoders.names import ZOO, weights_or_sentence
from cirlab.errors import UserError


class Hub(BaseHTTPRequestHandler):
    """Knows nothing, but answers."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a hub is asked for that can be reached."""
    Hub.asked = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Hub.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens."""
    monkeypatch.setattr(names, "_PAUSE", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_weights_are_refused_at_once_and_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("huggingface_hub").addHandler(caplog.handler)
    says = r"^weights 'org/model' \(llm\) are neither in a local folder nor reachable on a hub: "
    try:
        with pytest.raises(UserError, match=says), weights_or_sentence("org/model", key="llm"):
            assert is_offline_mode()
            AutoTokenizer.from_pretrained("org/model", cache_dir=tmp_path)
    finally:
        logging.getLogger("huggingface_hub").removeHandler(caplog.handler)
    assert not is_offline_mode()
    assert caplog.records == []


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_what_is_in_the_cache_is_read(tmp_path: Path) -> None:
    kept = tmp_path / "models--org--model"
    shutil.copytree(ZOO / "tiny_llm", kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    with weights_or_sentence("org/model", key="llm"):
        tokenizer = AutoTokenizer.from_pretrained("org/model", cache_dir=tmp_path)
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(ZOO / "tiny_llm"))


def test_a_hub_that_answers_is_used_as_ever(hub: list[str]) -> None:
    with weights_or_sentence("org/model", key="llm"):
        assert not is_offline_mode()
    assert hub == ["/"]


@pytest.mark.parametrize("name", ["zoo:tiny_llm", str(ZOO / "tiny_llm"), f"local-dir:{ZOO}"])
def test_no_hub_is_looked_for_where_weights_lie_in_a_folder(name: str, hub: list[str]) -> None:
    with weights_or_sentence(name, key="llm"):
        assert not is_offline_mode()
    assert hub == []


def test_who_is_offline_by_choice_stays_so(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with weights_or_sentence("org/model", key="llm"):
        assert is_offline_mode()
    assert is_offline_mode() and hub == []


def test_a_folder_of_adapters_alone_is_told_as_that(tmp_path: Path) -> None:
    shutil.copytree(ZOO / "tiny_llm", tmp_path, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "own")
    says = r"are adapters alone, .* merge_and_unload.* set llm\.name to that folder"
    with (
        pytest.raises(UserError, match=says),
        weights_or_sentence(str(tmp_path / "own"), key="llm.name"),
    ):
        AutoConfig.from_pretrained(tmp_path / "own")
