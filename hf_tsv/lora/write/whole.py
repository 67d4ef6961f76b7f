"""The modules that PEFT has to store whole together (`modules_to_save`), and the reasons why it can't.

PEFT matches an entry of `modules_to_save` in two ways. It wraps every module whose path ends with the entry, at a dot
or not: `norm` also matches `input_layernorm`. And it adds no factors to any module whose path contains the entry as a
run of components. A file that lacks a tensor of a wrapped module doesn't load at all.
"""

from collections.abc import Collection

from hf_tsv.lora.architecture import Architecture


def modules_stored_with(architecture: Architecture, parameter: str) -> set[str]:
    """Return the paths of all modules to store whole so that a parameter is, under all its tied names."""
    modules: set[str] = set()
    for name in architecture.aliases.get(parameter, (parameter,)):
        # PEFT refuses to copy plain lists of modules or parameters, so the enclosing module is stored.
        owner = name.rpartition(".")[0]
        while owner and architecture.modules[owner].is_container:
            owner = owner.rpartition(".")[0]
        modules.add(owner)
        if owner:
            modules |= {path for path in architecture.modules if path.endswith(owner)}
    return modules


def why_not_whole(architecture: Architecture, path: str) -> str:
    """Return why PEFT can't store a module whole; empty if it can."""
    if not path:
        return "PEFT can't hold parameters of the model itself, outside of its modules"
    module = architecture.modules[path]
    if module.has_layers or module.is_container:
        return f"PEFT could hold it only together with all layers of {path}"
    for inner in architecture.modules:
        if inner.startswith(f"{path}.") and inner.endswith(path):
            return f"PEFT would also store {inner} whole, inside {path}, and can't load such a file"
    for key in architecture.state_under(path):
        if not architecture.sources_of(key):
            return f"{path} would have to be stored whole, but the checkpoint lacks {key}"
    return ""


def is_excluded(path: str, whole: Collection[str]) -> bool:
    """Check whether a module's path contains that of one stored whole, so that PEFT adds no factors to it."""
    parts = path.split(".")
    for start in range(len(parts)):
        for end in range(start + 1, len(parts) + 1):
            if ".".join(parts[start:end]) in whole:
                return True
    return False
