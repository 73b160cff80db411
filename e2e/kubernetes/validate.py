"""Checks the documents of a YAML file against Kubernetes' own schemas, strictly: validate.py FILE VERSION [VERSION ...].

Prints the documents as JSON, or says what is wrong, a line each, and exits with 1; nothing is sent.
"""

import json
import sys

import kubernetes_validate
import yaml


def errors(documents, versions):
    for document in documents:
        name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                yield f"{name}, {version}: {path}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"{name}, {version}: {error.message}"


file, *versions = sys.argv[1:]
with open(file, encoding="utf-8") as opened:
    documents = list(yaml.safe_load_all(opened))
found = list(errors(documents, versions))
for error in found:
    print(error)
if not found:
    json.dump(documents, sys.stdout)
sys.exit(1 if found else 0)
