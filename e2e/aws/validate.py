"""Checks a JSON document against botocore's model of an ECS call: validate.py OPERATION FILE.

Says what is wrong, a line each, and exits with 1; nothing is sent.
"""

import json
import sys

import botocore.session
from botocore.validate import ParamValidator


def unlisted(shape, value, path):
    """What an enumeration does not list; botocore leaves that to the service."""
    if shape.type_name == "structure":
        for name, member in value.items():
            yield from unlisted(shape.members[name], member, f"{path}.{name}")
    elif shape.type_name == "list":
        for index, member in enumerate(value):
            yield from unlisted(shape.member, member, f"{path}[{index}]")
    elif shape.type_name == "map":
        for name, member in value.items():
            yield from unlisted(shape.value, member, f"{path}.{name}")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value!r} is none of {', '.join(shape.enum)}"


def errors(operation, document):
    model = botocore.session.get_session().get_service_model("ecs")
    shape = model.operation_model(operation).input_shape
    report = ParamValidator().validate(document, shape)
    if report.has_errors():
        return [report.generate_report()]
    return list(unlisted(shape, document, operation))


operation, file = sys.argv[1:]
with open(file, encoding="utf-8") as opened:
    found = errors(operation, json.load(opened))
for error in found:
    print(error)
sys.exit(1 if found else 0)
