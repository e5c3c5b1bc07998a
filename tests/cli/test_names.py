"""Misspelt names are refused with a suggestion, within seconds and before anything is loaded."""

import subprocess
import sys
import time

import pytest

from finemoe.errors import FinemoeError
from finemoe.models.hub import require_on_hub

UNUSED = "import sys; from finemoe.cli import app\n{}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-m", "mixtral-min", "-p", "x"], "unknown model 'mixtral-min'; did you mean 'mixtral-mini'?"),
        (["run", "-m", "mixtral-mini", "-p", "x", "--policy", "finemo"], "unknown policy 'finemo'; did you mean 'finemoe'?"),
        (["run", "-m", "mixtral-mini", "-p", "x", "--eviction", "lrru"], "unknown eviction rule 'lrru'; did you mean 'lru'?"),
        (
            ["run", "-m", "mixtral-mini", "-p", "x", "--option", "semantics=no"],
            "has no option 'semantics'; did you mean 'semantic'?",
        ),
        (["run", "-m", "nosuch/model", "-p", "x"], "model 'nosuch/model' is neither a folder nor in the Hugging Face cache"),
        (["record", "-m", "mixtral-mini", "-o", "{}/x.trace", "--dataset", "qestions"], "did you mean 'questions'?"),
        (["record", "-m", "no/such", "-o", "{}/x.trace"], "model 'no/such' is neither a folder nor in the Hugging Face cache"),
        (
            ["record", "-m", "mixtral-mini", "-o", "{}/x.trace", "--dataset", "no/such"],
            "dataset 'no/such' is neither a file nor in",
        ),
        (["info", "nosuch/model"], "model 'nosuch/model' is neither a folder nor in the Hugging Face cache"),
    ],
)
def test_a_misspelt_name_loads_no_torch(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    call = f"try: app({[one.format(tmp_path) for one in arguments]})\nexcept Exception as error: print(error)"
    done = subprocess.run([sys.executable, "-c", UNUSED.format(call)], capture_output=True, text=True, check=True)
    line, loaded = done.stdout.splitlines()
    assert message in line
    assert loaded == "[]"


class Unreachable:
    """A hub behind a network that is down."""

    def repo_info(self, *arguments, **options):
        raise ConnectionError("Name or service not known")


def test_an_unreachable_hub_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(
        FinemoeError, match=r"cannot be reached \(Name or service not known\); check the network, or give a folder"
    ):
        require_on_hub("nosuch/model")
    assert time.monotonic() - begin < 5
    (tmp_path / "models--some--model" / "snapshots").mkdir(parents=True)
    assert require_on_hub("some/model")  # the cached copy will do
    assert not require_on_hub(str(tmp_path))  # a folder needs no hub


def test_what_the_hub_does_not_have_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    class Without:
        def repo_info(self, *arguments, **options):
            error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Without)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FinemoeError, match=r"no dataset 'no/such' on .*, and no such file; check the spelling"):
        require_on_hub("no/such", "dataset")
