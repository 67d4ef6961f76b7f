"""FusionBench's class names and templates as prompts. Runs in FusionBench's own environment.

python clip_prompts.py TASK...     prints by task a list with one entry a class: its prompts
"""

import json
import sys

from fusion_bench.tasks.clip_classification import get_classnames_and_templates


def prompts_of(name, templates):
    return [template(name) for template in templates]


def main(*tasks: str) -> None:
    prompts = {}
    for task in tasks:
        classes, templates = get_classnames_and_templates(task)
        prompts[task] = [prompts_of(name, templates) for name in classes]
    print(json.dumps(prompts))


if __name__ == "__main__":
    main(*sys.argv[1:])
