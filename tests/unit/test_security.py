"""Nothing that a data set, a label file or a checkpoint holds is executed: what the package's source may not say at all."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.core.errors import ConfigError
from tokenlabel.core.study import Study

SOURCE = Path(__file__).resolve().parents[2] / "src"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "xmlrpc"}
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "makes code of text",
    "os.system": "gives text to a shell",
    "os.popen": "gives text to a shell",
    "subprocess.getoutput": "gives text to a shell",
    "subprocess.getstatusoutput": "gives text to a shell",
    "yaml.load": "makes objects of YAML; safe_load does not",
    "yaml.unsafe_load": "makes objects of YAML",
    "yaml.full_load": "makes objects of YAML",
    "yaml.load_all": "makes objects of YAML",
    "shutil.unpack_archive": "writes where the archive says",
    "torch.hub.load": "runs a repository's code",
    "torch.jit.load": "runs the file's code",
    "torch.package.PackageImporter": "runs the file's code",
}
# The names of what torch.load raises, and what it may build: argument lists of timm's training script hold plain values only.
ALLOWED = {
    ("models/weights.py", "pickle.UnpicklingError"),
    ("models/weights.py", "safe_globals([argparse.Namespace])"),
}


def found_in(text: str, where: str) -> Iterator[str]:
    """What a module's source may not say, a line each."""
    tree = ast.parse(text)
    allowed = {what for file, what in ALLOWED if file == where}
    imported: set[str] = set()
    for node in ast.walk(tree):
        line = f"{where}:{getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield line + f"from {node.module}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES:
            if ast.unparse(node) not in allowed:
                yield line + ast.unparse(node)
        elif isinstance(node, ast.Call):
            yield from (line + complaint for complaint in complaints_about(node, allowed))
    yield from (f"{where}: import {name}" for name in imported if not any(name in what for what in allowed))


def complaints_about(call: ast.Call, allowed: set[str]) -> Iterator[str]:
    """What is wrong with a call."""
    name = ast.unparse(call.func)
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if reason := CALLS.get(name):
        yield f"{name} {reason}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name.endswith((".add_safe_globals", ".safe_globals")):
        told = f"safe_globals({ast.unparse(call.args[0])})"
        if told not in allowed:
            yield told
    if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"
    if name.startswith("subprocess.") and keywords.get("shell", "False") != "False":
        yield f"{name} with shell"
    if name.endswith((".extractall", ".extract")) and keywords.get("filter") != "'data'":
        yield f"{name} writes where the archive says, without filter='data'"
    if name == "yaml.dump" and "Dumper" not in keywords:
        yield "yaml.dump writes tags of objects; safe_dump does not"
    if name.endswith("Environment") and "jinja2" in name and keywords.get("autoescape") != "True":
        yield f"{name} without autoescape"
    if name.endswith(("from_pretrained", "load_dataset")) and keywords.get("trust_remote_code", "False") != "False":
        yield f"{name} with trust_remote_code"


def test_the_source_executes_nothing_that_it_reads() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 100
    found = [
        line
        for path in files
        for line in found_in(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import pickle\npickle.loads(b'')", "eval('1')", "exec(text)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)", "subprocess.run(words, shell=True)", "os.system('ls')", "archive.extractall(folder)",
        "archive.extract(member, filter='tar')", "yaml.load(text, Loader=yaml.Loader)", "yaml.load(text)", "yaml.dump(value)",
        "torch.serialization.add_safe_globals([Namespace])", "torch.serialization.safe_globals([print])", "torch.jit.load(path)",
        "jinja2.Environment(loader=loader)", "shutil.unpack_archive(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_each_way_of_executing_is_found(text: str) -> None:
    assert list(found_in(text, "models/other.py"))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, map_location='cpu', weights_only=True)", "np.load(path, allow_pickle=False)", "np.load(path)",
        "subprocess.run(['git', 'describe'])", "archive.extractall(folder, filter='data')", "yaml.safe_load(text)", "model.eval()",
        "archive.extractfile(member)", "jinja2.Environment(autoescape=True)",
    ],
)  # fmt: skip
def test_what_is_harmless_is_not_found(text: str) -> None:
    assert not list(found_in(text, "models/other.py"))


@pytest.mark.parametrize("name", ["$(touch pwned)", "a/../b", "two\nlines", "-x", "{run}", "a b", "ä", "a;b", "a'b"])
@pytest.mark.parametrize("where", ["annotators", "models", "recipes", "experiments"])
def test_names_of_the_configuration_that_become_paths_are_restricted(
    where: str, name: str, raw_config: dict[str, Any]
) -> None:
    raw_config[where][name] = copy.deepcopy(next(iter(raw_config[where].values())))
    with pytest.raises(ConfigError, match=where):
        Study.plan(raw_config)
