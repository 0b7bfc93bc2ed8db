"""deploy/kubernetes: what kubectl makes of it, held against Kubernetes' schemas and against the line."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipeline import settings
from tests.conftest import missing
from tests.deployed import DEPLOY, ran, wrong_command, wrong_variables

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = ("cpu", "gpu")
VERSION = "1.31"
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
_KEDA = {"ScaledObject", "TriggerAuthentication"}
_made: dict[str, list[dict[str, Any]]] = {}


def made(overlay: str) -> list[dict[str, Any]]:
    if overlay not in _made:
        if not shutil.which("kubectl"):
            missing("no kubectl here: install it (kubernetes-client), it renders the overlays")
        told = ran("kubectl", "kustomize", str(FOLDER / "overlays" / overlay))
        assert told.returncode == 0, told.stderr
        _made[overlay] = list(yaml.safe_load_all(told.stdout))
    return _made[overlay]


def of(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in made(overlay) if o["kind"] == kind}


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    return {name: d["spec"]["template"]["spec"] for name, d in of(overlay, "Deployment").items()}


def line() -> settings.Settings:
    return settings.read(FOLDER / "base" / "line.toml", {})


@each_overlay
def test_kubernetes_knows_every_field(overlay):
    for thing in made(overlay):
        if thing["kind"] in _KEDA:
            assert thing["apiVersion"] == "keda.sh/v1alpha1"
        else:
            kubernetes_validate.validate(thing, VERSION, strict=True)


@pytest.mark.parametrize(("field", "value"), [("replica", 2), ("replicas", "two")])
def test_a_slip_would_be_found(field, value):
    thing = {**of("cpu", "Deployment")["gate"]}
    thing["spec"] = {**thing["spec"], field: value}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(thing, VERSION, strict=True)


@each_overlay
def test_the_roles_are_there_and_start_what_there_is(overlay):
    assert pods(overlay).keys() == {"worker", "gate", "refit"}
    for name, pod in pods(overlay).items():
        (container,) = pod["containers"]
        assert not wrong_command(container["args"])
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        assert not wrong_variables(environment)
        assert environment["GOLDLINE_KAFKA__SASL__USERNAME"] == f"goldline-{name}"
        assert container["image"].endswith(f"-{overlay}")
        for given in (b for a, b in zip(container["args"], container["args"][1:], strict=False) if a == "--station"):
            assert given in line().stations


@each_overlay
def test_pods_may_do_little(overlay):
    for pod in pods(overlay).values():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 64100
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        for probe, page in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
            assert container[f"{probe}Probe"]["httpGet"] == {"path": f"/health/{page}", "port": "metrics"}


@each_overlay
def test_only_refits_may_change_models(overlay):
    for name, pod in pods(overlay).items():
        (container,) = pod["containers"]
        places = {m["mountPath"]: m for m in container["volumeMounts"]}
        writable = {path for path, mount in places.items() if not mount.get("readOnly")}
        assert ("/srv/goldline/models" in writable) == (name == "refit")
        assert "/srv/goldline/frames" not in writable
        assert "/tmp" in writable
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in places.values()} == volumes.keys()
        assert volumes["kafka"]["secret"]["secretName"] == f"goldline-kafka-{name}"
        config = volumes["line"]["configMap"]["name"]
        assert of(overlay, "ConfigMap")[config]["data"]["line.toml"] == (FOLDER / "base" / "line.toml").read_text()
    assert set(of(overlay, "PersistentVolumeClaim")) == {"goldline"}


def test_what_the_settings_name_is_mounted():
    (container,) = pods("cpu")["worker"]["containers"]
    places = [m["mountPath"] for m in container["volumeMounts"]]
    s = line()
    assert s.kafka.tls
    assert s.kafka.sasl
    urls = [s.store.url, s.pool.url, *s.frames.roots]
    for path in (*(str(url).removeprefix("file://") for url in urls), s.drift.folder):
        assert path in places
    for file in (s.kafka.tls.ca_file, s.kafka.sasl.password_file):
        assert str(Path(str(file)).parent) in places


def test_gpus_are_asked_for_whole_by_workers_and_refits_alone():
    for name, pod in pods("gpu").items():
        wants = pod["containers"][0]["resources"].get("limits", {}).get("nvidia.com/gpu")
        assert wants == (None if name == "gate" else 1)
        assert ("tolerations" in pod) == (name != "gate")
    assert not [pod for pod in pods("cpu").values() if "nvidia.com/gpu" in str(pod)]


@each_overlay
def test_there_are_as_many_workers_as_stations_at_most(overlay):
    (scaled,) = of(overlay, "ScaledObject").values()
    spec = scaled["spec"]
    assert spec["scaleTargetRef"]["name"] in pods(overlay)
    assert "replicas" not in of(overlay, "Deployment")["worker"]["spec"]  # KEDA's to say
    assert spec["minReplicaCount"] <= spec["maxReplicaCount"] == line().partition_count()
    (trigger,) = spec["triggers"]
    kafka = line().kafka
    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["bootstrapServers"].split(",") == list(kafka.brokers)
    assert trigger["metadata"]["consumerGroup"] == kafka.group
    assert trigger["metadata"]["topic"] == f"{kafka.prefix}.frames"
    assert trigger["authenticationRef"]["name"] in of(overlay, "TriggerAuthentication")
    (budget,) = of(overlay, "PodDisruptionBudget").values()
    assert budget["spec"]["minAvailable"] < spec["minReplicaCount"]  # or no node could ever be drained


@each_overlay
def test_a_gate_is_never_two(overlay):
    gate = of(overlay, "Deployment")["gate"]["spec"]
    assert (gate["replicas"], gate["strategy"]) == (1, {"type": "Recreate"})


@each_overlay
def test_the_network_is_shut_but_for_kafka_names_and_metrics(overlay):
    policies = of(overlay, "NetworkPolicy")
    nothing = policies["nothing"]["spec"]
    assert (nothing["policyTypes"], nothing.keys()) == (["Ingress", "Egress"], {"podSelector", "policyTypes"})
    out = {p["port"] for rule in policies["kafka"]["spec"]["egress"] for p in rule["ports"]}
    assert out == {53} | {int(broker.rpartition(":")[2]) for broker in line().kafka.brokers}
    (rule,) = policies["metrics"]["spec"]["ingress"]
    (port,) = rule["ports"]
    assert {c["containerPort"] for pod in pods(overlay).values() for c in pod["containers"][0]["ports"]} == {
        port["port"]
    }
    image = (DEPLOY.parent / "docker" / "Dockerfile").read_text()
    assert f"GOLDLINE_METRICS__PORT={port['port']}" in image
