"""`cluster.yaml` and its variant for machines at hand, against Ray's own schema and against what they promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILES = ["cluster.yaml", "cluster.local.yaml"]
# Nobody's addresses: RFC 5737 keeps them for documentation.
DOCUMENTATION = re.compile(r"^(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+")
SECRET = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|-----BEGIN|(password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{12}", re.I
)


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    # `prepare_config` fills in the provider's defaults, as `ray up` does before it validates.
    validate_config(prepare_config(load(name)))


def test_an_unknown_key_would_be_found() -> None:
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(load("cluster.yaml") | {"idle_timeout_minute": 5})


@pytest.mark.parametrize("name", FILES)
def test_no_secret_and_nobodys_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not SECRET.search(text)
    for address in re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text):
        assert DOCUMENTATION.match(address) or address == "127.0.0.1", address


def test_only_ssh_is_open_and_only_to_one_address() -> None:
    rules = load("cluster.yaml")["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    assert all(r["CidrIp"].endswith("/32") for rule in rules for r in rule["IpRanges"])
    commands = " ".join(load("cluster.yaml")["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "0.0.0.0" not in commands


def test_gpu_workers_come_as_spot_with_a_fallback_and_the_head_trains_nothing() -> None:
    config = load("cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    workers = {name: found for name, found in types.items() if found["resources"].get("GPU")}
    spot = [found["node_config"].get("InstanceMarketOptions", {}).get("MarketType") for found in workers.values()]
    assert sorted(map(str, spot)) == ["None", "spot"]
    assert all(found["min_workers"] == 0 for found in workers.values())


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token(name: str) -> None:
    config = load(name)
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        if "ray start" in command:
            assert command.startswith("RAY_AUTH_MODE=token ")
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("name", FILES)
def test_nodes_install_the_checkout_s_package(name: str) -> None:
    config = load(name)
    mounted = {there: here for there, here in config["file_mounts"].items() if there.startswith("~/l2g-ray/")}
    assert all((ROOT / here).exists() for here in mounted.values())
    project = tomllib.loads((ROOT / mounted["~/l2g-ray/pyproject.toml"]).read_text())["project"]
    # What the build reads is there.
    assert {"README.md", "setup.py", *project["license-files"], "l2g_ray"} <= set(mounted.values())
    (line,) = [command for command in config["setup_commands"] if "pip install" in command]
    assert line.endswith("-c ~/l2g-ray/constraints.txt ~/l2g-ray'[demo,server]'")
