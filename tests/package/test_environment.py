"""``python -m ddu_ops``, the report that bug reports begin with."""

import json
import re
from pathlib import Path

import pytest
import torch

import ddu_ops
import ddu_ops.__main__ as report
from ddu_ops import reference
from processes import python


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--seconds", "0"]) == 0
    text = capsys.readouterr().out
    for pattern in (
        rf"ddu_ops +{re.escape(ddu_ops.__version__)}",
        rf"torch +{re.escape(torch.__version__)}, CUDA ",
        r"python +3\.\d+\.\d+",
        r"compiled +(gcc|clang) \d+.*, C\+\+ 20\d+, torch \d+\.\d+.*, CUDA ",
        r"cpu +(DEFAULT|AVX2|AVX512) \(torch: \w+\), \d+ threads",
        *(
            rf"{device} +{name} +1 problems, all operators agree"
            for device in report.devices()
            for name in report.TYPES
        ),
        "self-test passed",
    ):
        assert re.search(f"^{pattern}", text, re.MULTILINE), f"{pattern} is not in\n{text}"


def test_it_says_what_the_extension_was_compiled_with() -> None:
    build = ddu_ops._C.build()
    assert build["torch"] == torch.__version__.partition("+")[0]
    built_for = json.loads((Path(ddu_ops.__file__).parent / "_built_for.json").read_text())
    assert bool(build["cuda"]) == bool(built_for["cuda"])
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        assert f"{major}{minor}0" in str(build["cuda"])


@pytest.mark.parametrize("name", ["dynamic_dilation_unfold", "dynamic_dilation_fold"])
def test_a_disagreement_fails(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = getattr(reference, name)
    monkeypatch.setattr(reference, name, lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    assert report.main(["--seconds", "0"]) == 1
    text = capsys.readouterr().out
    assert "is wrong by 9.9e-03" in text
    assert text.endswith("self-test FAILED\n")


def test_as_a_command() -> None:
    assert python("-m", "ddu_ops", "--seconds", "0").endswith("self-test passed\n")
