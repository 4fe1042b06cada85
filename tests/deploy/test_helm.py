"""The Helm chart: linted, rendered with several values, held against Kubernetes' schemas, and its settings against the broker's own parser."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.addresses import parse_listeners
from broker.config import BrokerSettings, settings_from
from tests.deploy.schemas import write_schema
from tests.deploy.tools import DEPLOY, built, run

CHART = DEPLOY / "helm" / "tidelog"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = ("1.28", "1.31", "1.37")
"""The oldest that the chart takes, one between, and the newest that there are schemas of."""

OF_PROMETHEUS = ("PrometheusRule", "ServiceMonitor")
"""Kinds of Prometheus' operator, which have no schema in Kubernetes; see what is said of monitoring below."""

Manifest = dict[str, Any]


def rendered_text(values: Path, kubernetes: str, *options: str) -> str:
    return run(
        *(built("helm") / "helm", "template", "tidelog", CHART, "--namespace", "streams"),
        *("--values", values, "--kube-version", kubernetes, *options),
    )


def manifests_in(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest is not None]


def rendered(values: Path, kubernetes: str = KUBERNETES[-1], *options: str) -> list[Manifest]:
    return manifests_in(rendered_text(values, kubernetes, *options))


@pytest.fixture(params=VALUES, ids=lambda path: path.stem.removesuffix("-values"))
def values(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def manifests(values: Path) -> list[Manifest]:
    return rendered(values)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def groups(manifests: list[Manifest]) -> list[Manifest]:
    """Of brokers, of either kind."""
    return [*of_kind(manifests, "StatefulSet"), *of_kind(manifests, "Deployment")]


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [found["spec"]["template"]["spec"] for found in groups(manifests)]


def settings_in(manifests: list[Manifest], group: Manifest, ordinal: int, directory: Path) -> BrokerSettings:
    """What a broker reads in the pod of an ordinal (of a Deployment: any number): the file as it is mounted, and the environment as the
    kubelet expands it."""
    spec = group["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "config")
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "config")
    (config,) = (
        found for found in of_kind(manifests, "ConfigMap") if found["metadata"]["name"] == volume["configMap"]["name"]
    )
    file = directory / "tidelog.toml"
    file.write_text(config["data"][mount["subPath"]])
    assert container["args"] == ["serve", "--config", mount["mountPath"]]
    pod_name = f"{group['metadata']['name']}-{ordinal}"
    fields = {"metadata.name": pod_name, "status.podIP": f"10.0.0.{ordinal % 256}"}
    if group["kind"] == "StatefulSet":
        fields["metadata.labels['apps.kubernetes.io/pod-index']"] = str(ordinal)
    environment: dict[str, str] = {}
    for variable in container["env"]:
        value = variable["value"] if "value" in variable else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        environment[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], value)
    return settings_from(file=file, environment=environment)


def all_settings(manifests: list[Manifest], directory: Path) -> dict[str, BrokerSettings]:
    """Of every broker, by the name of its pod."""
    found: dict[str, BrokerSettings] = {}
    for group in groups(manifests):
        start = group["spec"].get("ordinals", {}).get("start", 0)
        for ordinal in range(start, start + group["spec"].get("replicas", 2)):
            found[f"{group['metadata']['name']}-{ordinal}"] = settings_in(manifests, group, ordinal, directory)
    return found


# ---- what Helm and Kubernetes take


def test_lint_finds_nothing(values: Path) -> None:
    said = run(built("helm") / "helm", "lint", CHART, "--strict", "--values", values, "--kube-version", KUBERNETES[-1])
    assert "[WARNING]" not in said
    assert "0 chart(s) failed" in said


def check(text: str, kubernetes: str, directory: Path) -> str:
    """What kubeconform says of rendered manifests, by schemas of a version of Kubernetes that lie in a directory."""
    for manifest in manifests_in(text):
        if manifest["kind"] not in OF_PROMETHEUS:
            write_schema(manifest["apiVersion"], manifest["kind"], kubernetes, directory)
    return run(
        *(built("kubeconform") / "kubeconform", "-strict", "-summary", "-kubernetes-version", f"{kubernetes}.0"),
        *(
            "-schema-location",
            f"{directory}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json",
            "-skip",
            ",".join(OF_PROMETHEUS),
        ),
        stdin=text,
    )


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_takes_it(values: Path, kubernetes: str, tmp_path: Path) -> None:
    text = rendered_text(values, kubernetes)
    count = sum(manifest["kind"] not in OF_PROMETHEUS for manifest in manifests_in(text))
    assert f"Valid: {count}, Invalid: 0, Errors: 0" in check(text, kubernetes, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("maxSurge: 1", "maxSurges: 1", "additional properties 'maxSurges' not allowed"),
        ("containerPort: 9092", "containerPort: kafka", "got string, want integer"),
        ("minReadySeconds: 5", "minReadySeconds: 5\n  minReadySeconds: 6", "already set in map"),
    ],
)
def test_what_kubernetes_does_not_take_is_found(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    text = rendered_text(CHART / "ci" / "deployment-values.yaml", KUBERNETES[-1])
    assert right in text
    check(text, KUBERNETES[-1], tmp_path)
    with pytest.raises(AssertionError, match=message):
        check(text.replace(right, wrong), KUBERNETES[-1], tmp_path)


def test_an_old_kubernetes_is_refused(values: Path) -> None:
    with pytest.raises(AssertionError, match="kubeVersion"):
        rendered(values, "1.27")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "objectStore.uri="], "objectStore.uri says where"),
        (["--set", "replica=3"], "replica"),
        (["--set", "wal.kind=disk"], "wal"),
        (["--set", "kind=Deployment", "--set", "wal.kind=volume"], "wal"),
        (["--set", "kind=DaemonSet"], "kind"),
        (["--set", "rollingUpdate.maxUnavailable=2"], "rollingUpdate"),
        (["--set", "rollingUpdate.maxUnavailable=0", "--set", "rollingUpdate.maxSurge=0"], "rollingUpdate"),
        (["--set-string", "settings.node\\.id=7"], "node.id is the chart's own"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        rendered(VALUES[0], KUBERNETES[-1], *options)


# ---- what the broker takes


def test_every_broker_is_told_settings_that_it_takes(manifests: list[Manifest], tmp_path: Path) -> None:
    found = all_settings(manifests, tmp_path)
    assert len(found) > 1
    is_deployment = bool(of_kind(manifests, "Deployment"))
    ids = {settings.node_id for settings in found.values()}
    assert ids == {-1} if is_deployment else len(ids) == len(found)
    ports = {port["name"]: port["containerPort"] for pod in pods(manifests) for port in pod["containers"][0]["ports"]}
    (headless,) = (one for one in of_kind(manifests, "Service") if one["spec"].get("clusterIP") == "None")
    for pod_name, settings in found.items():
        told = {listener.name: listener for listener in parse_listeners(settings.advertised_listeners)}
        name = f"{pod_name}.{headless['metadata']['name']}.streams.svc"
        address = f"10.0.0.{pod_name.rpartition('-')[2]}"
        assert {listener.host for listener in told.values()} == {address if is_deployment else name}
        assert {parse_listeners(settings.listeners)[0].port, told["PLAINTEXT"].port} == {ports["kafka"]}
        assert {parse_listeners(settings.controller_listeners)[0].port, told["CONTROLLER"].port} == {ports["brokers"]}
        assert parse_listeners(settings.metrics_listeners)[0].port == ports["metrics"]


def test_no_variable_comes_from_elsewhere(manifests: list[Manifest]) -> None:
    """A Service called tidelog would set TIDELOG_PORT, which is refused as no setting."""
    for pod in pods(manifests):
        assert pod["enableServiceLinks"] is False


def test_settings_of_the_values_arrive(tmp_path: Path) -> None:
    for settings in all_settings(rendered(CHART / "ci" / "volume-values.yaml"), tmp_path).values():
        assert settings.num_partitions == 12
        assert settings.log_retention_ms == 86_400_000
        assert settings.memory_bytes == 1 << 30


def test_with_a_volume_the_wal_is_on_it(tmp_path: Path) -> None:
    manifests = rendered(CHART / "ci" / "volume-values.yaml")
    (group,) = of_kind(manifests, "StatefulSet")
    (claim,) = group["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"], "two processes must never have it at the same time"
    assert set(group["spec"]["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    (mount,) = (
        mount
        for mount in group["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == claim["metadata"]["name"]
    )
    for settings in all_settings(manifests, tmp_path).values():
        path, _, capacity = settings.wal_uri.removeprefix("file://").partition("?capacity=")
        assert path.startswith(f"{mount['mountPath']}/")
        size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
        assert size > 2 * int(capacity.removesuffix("GiB")), "room to set a damaged one aside"


@pytest.mark.parametrize("name", ["bucket", "zones", "deployment", "deployment-zones"])
def test_with_the_wal_in_a_bucket_there_is_no_volume_at_all(name: str, tmp_path: Path) -> None:
    manifests = rendered(CHART / "ci" / f"{name}-values.yaml")
    for group in groups(manifests):
        assert "volumeClaimTemplates" not in group["spec"]
    for pod in pods(manifests):
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "secret"}
    for settings in all_settings(manifests, tmp_path).values():
        assert re.fullmatch(r"s3://[^?]+(\?[^?]*)?[?&]batch_interval_ms=\d+", settings.wal_uri), settings.wal_uri
        assert settings.wal_uri.count("?") == 1


def test_zones_have_brokers_of_their_own_with_ids_of_their_own(tmp_path: Path) -> None:
    manifests = rendered(CHART / "ci" / "zones-values.yaml")
    by_rack: dict[str, set[int]] = defaultdict(set)
    for settings in all_settings(manifests, tmp_path).values():
        by_rack[settings.broker_rack].add(settings.node_id)
    assert by_rack == {"eu-central-1a": {0, 1}, "eu-central-1b": {1000, 1001}, "eu-central-1c": {2000, 2001}}
    for group in of_kind(manifests, "StatefulSet"):
        affinity = group["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        (expression,) = term["matchExpressions"]
        assert (expression["key"], expression["operator"]) == ("topology.kubernetes.io/zone", "In")
        assert expression["values"] == [group["spec"]["selector"]["matchLabels"]["tidelog/zone"]]


def test_a_deployment_has_nothing_that_pods_are_told_apart_by(tmp_path: Path) -> None:
    manifests = rendered(CHART / "ci" / "deployment-zones-values.yaml")
    assert of_kind(manifests, "StatefulSet") == []
    racks = {group["metadata"]["name"]: set[str]() for group in of_kind(manifests, "Deployment")}
    for pod_name, settings in all_settings(manifests, tmp_path).items():
        assert settings.node_id == -1
        racks[pod_name.rpartition("-")[0]].add(settings.broker_rack)
    assert racks == {"tidelog-eu-central-1a": {"eu-central-1a"}, "tidelog-eu-central-1b": {"eu-central-1b"}}
    for group in of_kind(manifests, "Deployment"):
        assert "ordinals" not in group["spec"]
        assert "serviceName" not in group["spec"]
        for variable in group["spec"]["template"]["spec"]["containers"][0]["env"]:
            assert "POD_NAME" not in variable["name"]


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::7"])
def test_a_pod_tells_its_address_in_brackets_which_both_families_bear(address: str) -> None:
    (pod,) = pods(rendered(CHART / "ci" / "deployment-values.yaml"))
    (told,) = (one["value"] for one in pod["containers"][0]["env"] if one["name"] == "TIDELOG_ADVERTISED_LISTENERS")
    listeners = parse_listeners(told.replace("$(POD_IP)", address))
    assert [(one.name, one.host, one.port) for one in listeners] == [
        ("PLAINTEXT", address, 9092),
        ("CONTROLLER", address, 9093),
    ]


def test_without_zones_brokers_are_spread_over_those_there_are() -> None:
    for pod in pods(rendered(CHART / "ci" / "bucket-values.yaml")):
        (constraint,) = pod["topologySpreadConstraints"]
        assert constraint["topologyKey"] == "topology.kubernetes.io/zone"


# ---- how pods live and die


def test_a_stop_has_the_time_that_it_may_take(manifests: list[Manifest], tmp_path: Path) -> None:
    """Before it is told to stop it serves on while clients that begin are led elsewhere; then giving partitions away, and uploading, may
    each take shutdown.timeout.ms."""
    for settings in all_settings(manifests, tmp_path).values():
        for pod in pods(manifests):
            program, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert program == "sleep"
            assert (pod["terminationGracePeriodSeconds"] - int(seconds)) * 1000 > 2 * settings.shutdown_timeout_ms


def test_probes_ask_what_the_broker_answers(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        (container,) = pod["containers"]
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
        assert "startupProbe" not in container, "recovery takes as long as it takes, and /healthz answers meanwhile"


def test_pods_have_no_rights(manifests: list[Manifest]) -> None:
    """Pod Security Standard «restricted», and a read-only root."""
    for pod in pods(manifests):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False


def quantity_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def test_the_limit_leaves_room_for_compaction(manifests: list[Manifest], tmp_path: Path) -> None:
    """A quarter more than memory.bytes, and a process that takes 256 MiB and three eighths of it at most (docs/operations.md)."""
    for settings in all_settings(manifests, tmp_path).values():
        for pod in pods(manifests):
            limit = quantity_bytes(pod["containers"][0]["resources"]["limits"]["memory"])
            assert limit >= settings.memory_bytes * 13 // 8 + (256 << 20)


def test_everything_selects_the_pods_that_there_are(manifests: list[Manifest]) -> None:
    labels = [group["spec"]["template"]["metadata"]["labels"].items() for group in groups(manifests)]
    selectors = [one["spec"]["selector"] for one in of_kind(manifests, "Service")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(manifests, "PodDisruptionBudget")]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(manifests, "NetworkPolicy")]
    assert len(selectors) >= 3
    for selector in selectors:
        assert all(selector.items() <= found for found in labels)
    for group in groups(manifests):
        assert (
            group["spec"]["selector"]["matchLabels"].items() <= group["spec"]["template"]["metadata"]["labels"].items()
        )
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        targets = [
            one
            for one in groups(manifests)
            if (one["kind"], one["metadata"]["name"])
            == (scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
        ]
        assert len(targets) == 1
        assert "replicas" not in targets[0]["spec"], "or each upgrade would set them back"


def test_one_broker_at_a_time_is_taken_away(manifests: list[Manifest]) -> None:
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    for group in of_kind(manifests, "StatefulSet"):
        assert group["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    for group in of_kind(manifests, "Deployment"):
        assert group["spec"]["strategy"]["type"] == "RollingUpdate"
        assert group["spec"]["strategy"]["rollingUpdate"] in (
            {"maxUnavailable": 0, "maxSurge": 1},
            {"maxUnavailable": 1, "maxSurge": 0},
        )


def test_only_brokers_reach_the_port_between_brokers() -> None:
    (policy,) = of_kind(rendered(CHART / "ci" / "bucket-values.yaml"), "NetworkPolicy")
    for rule in policy["spec"]["ingress"]:
        if {"port": "brokers"} in rule["ports"]:
            (peer,) = rule["from"]
            assert peer == {"podSelector": policy["spec"]["podSelector"]}
            assert rule["ports"] == [{"port": "brokers"}]


def test_secrets_and_roles_arrive_where_they_are_read() -> None:
    manifests = rendered(CHART / "ci" / "bucket-values.yaml")
    (pod,) = pods(manifests)
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "tidelog-bucket"}}]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "ca")
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "ca")
    uri = container and yaml.safe_load((CHART / "ci" / "bucket-values.yaml").read_text())["objectStore"]["uri"]
    assert f"ca={mount['mountPath']}/{volume['secret']['items'][0]['path']}" in uri
    (account,) = of_kind(rendered(CHART / "ci" / "volume-values.yaml"), "ServiceAccount")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]


# ---- how they are watched


def test_monitoring_is_what_the_operator_of_prometheus_takes() -> None:
    """Against the fields of its custom resources that are used here."""
    manifests = rendered(CHART / "ci" / "volume-values.yaml")
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "relabelings"}
    services = [
        one
        for one in of_kind(manifests, "Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    (service,) = services
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "tidelog", 'alerts say up{job="tidelog"}'
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    (rules,) = of_kind(manifests, "PrometheusRule")
    (group,) = rules["spec"]["groups"]
    kept = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]
    assert [rule["expr"] for rule in group["rules"]] == [rule["expr"] for rule in kept["rules"]]
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"].startswith("https://example.org/tidelog/docs/operations.md#")


def test_dashboards_arrive_whole() -> None:
    found = {
        name: text
        for one in of_kind(rendered(CHART / "ci" / "volume-values.yaml"), "ConfigMap")
        if one["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in one["data"].items()
    }
    assert found == {path.name: path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}
