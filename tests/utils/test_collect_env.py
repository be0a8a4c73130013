import os
import runpy

import numpy
import torch

from detectron2.utils import collect_env


def test_the_report_names_versions():
    report = collect_env.collect_env_info()
    for text in (torch.__version__, numpy.__version__, "detectron2", "fvcore", "Python", "GPU available"):
        assert text in report


def test_a_broken_section_does_not_spoil_the_report(monkeypatch):
    def broken():
        raise RuntimeError("driver on fire")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    report = collect_env.collect_env_info()
    assert "driver on fire" in report
    assert torch.__version__ in report


def test_variables(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    monkeypatch.delenv("DETECTRON2_ENV_MODULE", raising=False)
    assert collect_env.get_env_module() == ("DETECTRON2_ENV_MODULE", "<not set>")
    assert "/some/where" in collect_env.collect_env_info()


def test_architectures(tmp_path):
    assert "cannot find cuobjdump" in collect_env.detect_compute_compatibility(None, "lib.so")
    program = tmp_path / "bin" / "cuobjdump"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'ELF file 1: a.sm_90.cubin'\necho 'ELF file 2: a.sm_80.cubin'\n")
    os.chmod(program, 0o755)
    assert collect_env.detect_compute_compatibility(str(tmp_path), "lib.so") == "8.0, 9.0"


def test_nccl_without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "not" in collect_env.test_nccl_ops()


def test_torch_report_failure_is_told(monkeypatch):
    import torch.utils.collect_env as theirs

    def broken():
        raise OSError("no shell")

    monkeypatch.setattr(theirs, "get_pretty_env_info", broken)
    assert "no shell" in collect_env.collect_torch_env()


def test_as_a_command(capsys):
    runpy.run_path(collect_env.__file__, run_name="__main__")
    assert "PyTorch" in capsys.readouterr().out
