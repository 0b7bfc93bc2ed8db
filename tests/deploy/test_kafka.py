"""deploy/kafka/acls.sh: what it says, without a broker. tests/integration/test_access.py tries it on one."""

import os
import re

from tests.deployed import DEPLOY, ran, wrong_command
from workers import topics

SCRIPT = DEPLOY / "kafka" / "acls.sh"


def told(tmp_path, **environment: str) -> list[str]:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "BOOTSTRAP": "b:1", "KAFKA_ACLS": str(tool), **environment}
    ran_ = ran("bash", str(SCRIPT), env=given)
    assert ran_.returncode == 0, ran_.stderr
    return ran_.stdout.splitlines()


def test_it_names_topics_that_there_are(tmp_path):
    named = set(re.findall(r"--topic (\S+)", "\n".join(told(tmp_path))))
    assert named == {f"goldline.{kind}" for kind in topics.KINDS} | {"goldline."}


def test_prefix_group_and_users_are_the_line_s(tmp_path):
    lines = told(tmp_path, PREFIX="plant-2", GROUP="night", USERS="p2", COMMAND_CONFIG="admin.properties")
    assert all(" --command-config admin.properties " in line for line in lines)
    assert set(re.findall(r"--topic ([^.]+)\.", "\n".join(lines))) == {"plant-2"}
    assert set(re.findall(r"--group (\S+)", "\n".join(lines))) == {"night", "night.pool"}
    assert all(re.search(r"--allow-principal User:p2-\w+ ", line) for line in lines)


def test_nobody_may_do_everything(tmp_path):
    for line in told(tmp_path):
        operations = set(re.findall(r"--operation (\w+)", line))
        assert operations
        assert not operations & {"All", "Alter", "AlterConfigs", "ClusterAction", "Delete"}
        assert "*" not in line
        if "prefixed" in line:
            assert not operations & {"Write"}


def test_without_a_broker_it_does_nothing():
    refused = ran("bash", str(SCRIPT), env={"PATH": os.environ["PATH"]})
    assert refused.returncode != 0
    assert "BOOTSTRAP" in refused.stderr


def test_its_words_name_commands_that_there_are():
    named = set(re.findall(r"^# .*?goldline ([a-z-]+)", SCRIPT.read_text(), re.MULTILINE))
    assert {"camera", "worker", "gate", "feedback"} <= named
    assert not [name for name in named if wrong_command([name])]
