"""Files from strangers: weights come out, and nothing in them is executed."""

import collections
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy._core.multiarray import scalar

from covid_jax.errors import UserError
from covid_jax.nnunet.pickles import load_checkpoint, load_pickle
from tests.conftest import ROOT

MODEL = ROOT / "tests/files/nnunet_version_1/fold_0/model_final_checkpoint.model"


class Evil:
    """Its pickle calls os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class EvilState:
    """Its pickle calls exec when its state is set."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([("a", Evil(self.marker))])


def opcodes(marker, module=b"os", name=b"system"):
    """The same call in the opcodes of protocol 0."""
    return b"c%b\n%b\n(Vtouch %b\ntR." % (module, name, str(marker).encode())


def instance(marker):
    """INST, which names and calls in one opcode."""
    return b"(Vtouch %b\nios\nsystem\n." % str(marker).encode()


def dotted(marker):
    """A name that is known, and from it on to another one (protocol 4)."""
    parts = [b"\x80\x04"]
    for text in ("torch._utils", "_rebuild_tensor_v2.__globals__"):
        parts.append(b"\x8c" + bytes([len(text)]) + text.encode())
    return b"".join(parts) + b"\x93."


def zipped(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")


PROGRAMS = {
    "a call": lambda marker: pickle.dumps({"state_dict": Evil(marker)}),
    "a call inside a known container": lambda marker: pickle.dumps(EvilState(marker)),
    "protocol 0": opcodes,
    "eval": lambda marker: opcodes(marker, b"builtins", b"eval"),
    "python 2's name of eval": lambda marker: opcodes(marker, b"__builtin__", b"eval"),
    "an instance": instance,
    "a dotted name": dotted,
    "an array of objects": lambda marker: pickle.dumps(np.array([Evil(marker)], object)),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "legacy content"])
def test_a_hostile_file_is_refused_and_not_executed(tmp_path, name, form):
    marker, path = tmp_path / "executed", tmp_path / "file"
    program = PROGRAMS[name](marker)
    if form == "zip":
        zipped(path, program)
    elif form == "legacy content":
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join(head) + program)
    else:
        path.write_bytes(program)
    load = load_pickle if form == "pickle" else load_checkpoint
    with pytest.raises(UserError, match=str(path)):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a call", "a call inside a known container", "protocol 0"])
def test_these_files_would_execute_in_pythons_own_reader(tmp_path, name):
    """So the test above can fail."""
    pickle.loads(PROGRAMS[name](tmp_path / "executed"))
    assert (tmp_path / "executed").exists()


def test_the_refusal_says_what_the_file_wanted_to_call(tmp_path):
    (tmp_path / "plans.pkl").write_bytes(opcodes("x"))
    with pytest.raises(UserError, match=r"nothing of it was executed: it calls os\.system"):
        load_pickle(tmp_path / "plans.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays_come_back_from_every_protocol(tmp_path, protocol):
    plans = {
        "patch": np.array([8, 16, 16]),
        "spacing": np.array([[5.0, 1.5]]).T,
        "mean": np.float64(-400),
        "order": collections.OrderedDict({0: "CT"}),
        "names": ["a", None, True, (1, 2.5)],
    }
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(plans, protocol))
    back = load_pickle(tmp_path / "plans.pkl")
    assert back.keys() == plans.keys()
    np.testing.assert_array_equal(back["patch"], plans["patch"])
    np.testing.assert_array_equal(back["spacing"], plans["spacing"])
    assert (back["mean"], back["order"], back["names"]) == (
        plans["mean"],
        plans["order"],
        plans["names"],
    )


def test_a_tensor_cannot_reach_outside_of_its_storage(tmp_path):
    """Of a file whose sizes were made larger by hand."""
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x02tQK\x00K%c\x85K\x01\x85tR."
    )
    for size, inside in ((2, True), (3, False)):
        with zipfile.ZipFile(tmp_path / "file", "w") as archive:
            archive.writestr("archive/data.pkl", program % size)
            archive.writestr("archive/data/0", np.array([1, 2], "<f4").tobytes())
        if inside:
            assert load_checkpoint(tmp_path / "file").tolist() == [1, 2]
        else:
            with pytest.raises(UserError, match="outside of its storage"):
                load_checkpoint(tmp_path / "file")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_in_one_line_or_read(tmp_path_factory, data):
    """Cut short, or with bytes changed."""
    content = bytearray(MODEL.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # the memo's place 2 ** 31 - 1
        b"\x80\x05\x96\x00\x00\x00\x00\x04\x00\x00\x00.",  # a bytearray of 16 GiB
        b"\x80\x02X\xff\xff\xff\x7fa.",  # a text of 2 GiB that is not there
    ],
    ids=["memo", "bytearray", "text"],
)
def test_a_number_in_a_file_takes_no_memory(tmp_path, program):
    (tmp_path / "plans.pkl").write_bytes(program)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="damaged"):
        load_pickle(tmp_path / "plans.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"N.")
    assert (tmp_path / "file").stat().st_size < 100_000
    with pytest.raises(UserError, match="compressed"):
        load_checkpoint(tmp_path / "file")


class Faked:
    """Its pickle is a number of a dtype whose state says that its field of objects holds none."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return scalar, (FakedDtype(self.state), b"8 bytes!")


class FakedDtype(Faked):
    def __reduce__(self):
        return np.dtype, ("V8",), self.state


@pytest.mark.parametrize(
    "state",
    [
        (3, "|", None, ("p",), {"p": (np.dtype("u8"), 0)}, 8, 1, 0),
        (3, "|", (np.dtype("u8"), (1,)), None, None, 8, 1, 0),
        (3, "<", None, None, None, 8, 1, 0),
    ],
)
def test_a_dtype_is_of_numbers_or_text_whatever_its_state_says(tmp_path, state):
    """numpy's own believes that a field of objects has none, and takes bytes for an address."""
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(Faked(state)))
    with pytest.raises(UserError, match="an array of"):
        load_pickle(tmp_path / "plans.pkl")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "nowhere.pth")
