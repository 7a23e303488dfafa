"""The manifests hold to Kubernetes' own schemas, and to the command's flags and statuses."""

import kubernetes_validate
import pytest
import yaml

from covid_jax.stopping import REQUEUE_STATUS
from tests.conftest import ROOT

MANIFESTS = sorted((ROOT / "launch" / "kubernetes").glob("*.yaml"))
DOCUMENTS = [
    pytest.param(document, id=f"{path.stem} {document['kind']}")
    for path in MANIFESTS
    for document in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_manifest_is_what_the_schema_says(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_refuses_a_field_that_it_does_not_know():
    document = yaml.safe_load(MANIFESTS[0].read_text())
    document["spec"]["retries"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="retries"):
        kubernetes_validate.validate(document, "1.34", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_status_of_a_stop_makes_a_new_pod_and_no_failure(path):
    *_, job = yaml.safe_load_all(path.read_text())
    rule = job["spec"]["podFailurePolicy"]["rules"][0]
    assert rule["action"] == "Ignore"
    assert rule["onExitCodes"]["values"] == [REQUEUE_STATUS]


def test_the_pods_of_a_run_are_as_many_as_its_mesh_has_devices():
    service, job = yaml.safe_load_all((ROOT / "launch" / "kubernetes" / "train.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    pods = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == pods
    assert f"--num_processes={pods}" in container["command"]
    assert f"--config.mesh.data={pods}" in container["args"]
    name = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert any(argument.startswith(f"--coordinator={name}:") for argument in container["command"])
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
