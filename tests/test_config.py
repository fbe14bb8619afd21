"""Settings: precedence, origins, kinds of values, and errors that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentmesh import config
from agentmesh.config import Override, Settings
from agentmesh.errors import ConfigError

FILE = """
name = "hello"
tenant = "acme"

[broker]
url = "nats://file:4222"
store = "data"
max_payload = "2MB"

[defaults]
deadline = "1m30s"
mailbox = { size = 10, overflow = "drop_oldest" }
restart = { max = 5, window = "60s" }

[agents.greeter]
class = "hello.agents:Greeter"
replicas = 2
args = { greeting = "Hi", "odd.key" = 1 }

[agents.solo]
class = "hello.agents:Solo"
isolation = "process"
env = { MODE = "x" }

[tools]
targets = ["hello.tools"]

[profiles.prod]
broker.url = "nats://prod:4222"
agents.greeter.replicas = 8
"""


def load(folder: Path, text: str = FILE, *, file: str = "mesh.toml", **kwargs: Any) -> Settings:
    (folder / file).write_text(text)
    return config.load(**{"environ": {}, "directory": folder, **kwargs})


def problem(folder: Path, text: str, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **kwargs)
    return str(caught.value)


# ---------------------------------------------------------------- what a file says


def test_a_file_is_read_with_durations_sizes_and_tables(tmp_path: Path) -> None:
    settings = load(tmp_path)

    assert settings.tenant == "acme"
    assert settings.broker.max_payload == 2 * 1024 * 1024
    assert settings.defaults.deadline == 90.0
    assert settings.defaults.mailbox is not None
    assert settings.defaults.mailbox.overflow == "drop_oldest"
    assert settings.defaults.restart.window == 60.0
    assert settings.agents["greeter"].target == "hello.agents:Greeter"
    assert settings.agents["greeter"].args == {"greeting": "Hi", "odd.key": 1}
    assert settings.agents["solo"].env == {"MODE": "x"}


def test_without_a_file_everything_has_its_default_and_the_folder_gives_the_name(tmp_path: Path) -> None:
    settings = config.load(environ={}, directory=tmp_path)

    assert settings.file is None
    assert settings.name == tmp_path.name.replace("[", "-").strip("-")
    assert settings.broker.embedded
    assert settings.store == tmp_path / ".agentmesh"


def test_the_file_of_the_nearest_parent_folder_counts_and_paths_start_there(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    load(tmp_path)

    settings = config.load(environ={}, directory=tmp_path / "a" / "b")

    assert settings.root == tmp_path
    assert settings.store == tmp_path / "data"


def test_pyproject_toml_may_hold_the_settings(tmp_path: Path) -> None:
    settings = load(tmp_path, '[tool.agentmesh]\ntenant = "acme"\n', file="pyproject.toml")

    assert settings.tenant == "acme"
    assert settings.origin("tenant") == "pyproject.toml"


def test_a_pyproject_toml_without_our_table_is_not_ours(tmp_path: Path) -> None:
    assert load(tmp_path, '[project]\nname = "x"\n', file="pyproject.toml").file is None


def test_settings_in_both_files_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.agentmesh]\n")

    assert "keep one" in problem(tmp_path, FILE)


def test_memory_as_store_means_nothing_is_kept(tmp_path: Path) -> None:
    assert load(tmp_path, '[broker]\nstore = "memory"\n').store is None


# ---------------------------------------------------------------- precedence and origins


def test_command_line_wins_over_environment_over_profile_over_file_over_default(tmp_path: Path) -> None:
    environ: dict[str, str] = {}

    def url(**kwargs: Any) -> tuple[str, str]:
        settings = load(tmp_path, environ=environ, **kwargs)
        return settings.broker.url, settings.origin("broker.url")

    assert load(tmp_path, "").broker.url == "embedded"
    assert url() == ("nats://file:4222", "mesh.toml")
    assert url(profile="prod") == ("nats://prod:4222", "mesh.toml [profiles.prod]")
    environ["NATS_URL"] = "nats://env:4222"
    assert url(profile="prod") == ("nats://env:4222", "$NATS_URL")
    environ["AGENTMESH_BROKER_URL"] = "nats://ours:4222"
    assert url(profile="prod") == ("nats://ours:4222", "$AGENTMESH_BROKER_URL")
    typed = [Override("broker.url", "nats://typed:4222", "--nats")]
    assert url(profile="prod", overrides=typed) == ("nats://typed:4222", "--nats")


def test_a_profile_changes_only_what_it_names(tmp_path: Path) -> None:
    settings = load(tmp_path, profile="prod")

    assert settings.agents["greeter"].replicas == 8
    assert settings.agents["greeter"].target == "hello.agents:Greeter"
    assert settings.tenant == "acme"


def test_the_profile_can_come_from_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"AGENTMESH_PROFILE": "prod"}).broker.url == "nats://prod:4222"


def test_every_scalar_setting_has_a_variable_of_the_environment(tmp_path: Path) -> None:
    environ = {
        "AGENTMESH_NODE_COUNT": "3",
        "AGENTMESH_BROKER_SYNC_ALWAYS": "false",
        "AGENTMESH_DEFAULTS_MAILBOX_SIZE": "7",
        "AGENTMESH_TOOLS_TARGETS": "a.b, c:d",
    }
    settings = load(tmp_path, "", environ=environ)

    assert settings.node.count == 3
    assert settings.broker.sync_always is False
    assert settings.defaults.mailbox is not None
    assert settings.defaults.mailbox.size == 7
    assert settings.tools.targets == ["a.b", "c:d"]


def test_a_wrong_variable_is_an_error_that_names_it(tmp_path: Path) -> None:
    text = problem(tmp_path, "", environ={"AGENTMESH_BROKER_PORT": "many"})

    assert "$AGENTMESH_BROKER_PORT" in text
    assert "'many'" in text


def test_variables_that_only_look_like_settings_are_found(tmp_path: Path) -> None:
    environ = {"AGENTMESH_TENNANT": "x", "AGENTMESH_NATS_SERVER": "/bin/nats-server", "HOME": "/"}

    assert config.unknown_variables(environ) == [("AGENTMESH_TENNANT", "AGENTMESH_TENANT")]


# ---------------------------------------------------------------- ${…}


def test_variables_in_strings_are_filled_in_and_shown_as_written(tmp_path: Path) -> None:
    text = '[broker]\nurl = "nats://${HOST}:${PORT:-4222}"\ntoken = "${TOKEN}"\nstore = "$${HOST}"\n'
    settings = load(tmp_path, text, environ={"HOST": "h", "TOKEN": "s3cret"})

    assert settings.broker.url == "nats://h:4222"
    assert settings.broker.token == "s3cret"
    assert settings.broker.store == "${HOST}"
    assert "s3cret" not in str([*settings.entries()])


def test_a_variable_that_is_not_set_is_an_error_with_its_name(tmp_path: Path) -> None:
    assert (
        problem(tmp_path, 'name = "${NOPE}"\n') == "mesh.toml: name: ${NOPE}: the environment variable NOPE is not set"
    )


def test_variables_of_a_profile_that_was_not_chosen_need_not_be_set(tmp_path: Path) -> None:
    assert load(tmp_path, '[profiles.prod]\nbroker.token = "${NOPE}"\n').broker.token is None


def test_a_secret_written_into_the_file_is_refused(tmp_path: Path) -> None:
    text = problem(tmp_path, '[profiles.prod]\nbroker.password = "hunter2"\n')

    assert "profiles.prod.broker.password" in text
    assert "${NATS_PASSWORD}" in text
    assert "hunter2" not in text


def test_credentials_in_an_url_are_not_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, "", environ={"NATS_URL": "nats://me:pw@h:4222"})

    assert {e.key: e.value for e in settings.entries()}["broker.url"] == "nats://***@h:4222"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenat = 'x'", ["mesh.toml: tenat", "did you mean 'tenant'"]),
        ("[broker]\nprot = 1", ["broker.prot", "did you mean 'port'", "[broker] knows"]),
        ("[agents.a]\nclass = 'm:C'\nreplica = 2", ["agents.a.replica", "did you mean 'replicas'"]),
        ("[profiles.p]\nbroker.prot = 1", ["profiles.p.broker.prot", "did you mean 'port'"]),
        ("[defaults]\nmailbox = { sise = 1 }", ["defaults.mailbox.sise", "did you mean 'size'"]),
        ("[http]\nbind = 'x'", ["http", "unknown key"]),
        ("[agents.a]\nreplicas = 2", ["agents.a.class", "is missing"]),
        ("[agents.a]\nclass = 'hello.agents'", ["agents.a.class", "'hello.agents'", "module:Class"]),
        ("[agents.a]\nclass = 'm:C'\nreplicas = -1", ["agents.a.replicas", "-1", "greater than or equal to 0"]),
        ("[agents.a]\nclass = 'm:C'\nisolation = 'thread'", ["agents.a.isolation", "'thread'", "'process'"]),
        ("[agents.a]\nclass = 'm:C'\nenv = { A = 'b' }", ["agents.a", "isolation = 'process'"]),
        ("[agents.'a b']\nclass = 'm:C'", ["agents.a b", "letters, digits"]),
        ("tenant = 'a.b'", ["tenant", "'a.b'", "letters, digits"]),
        ("[defaults]\ndeadline = 'soon'", ["defaults.deadline", "'soon'", "'30s'"]),
        ("[broker]\nmax_payload = 'big'", ["broker.max_payload", "'big'", "'1MB'"]),
        ("[broker]\nport = 70000", ["broker.port", "70000", "65535"]),
        ("broker = 3", ["broker", "3", "expected a table"]),
        ("[agents]\na = 3", ["agents.a", "3"]),
        ("name = \nx = 1", ["mesh.toml", "is not TOML", "line 1"]),
    ],
)
def test_an_error_names_the_key_the_value_and_what_was_expected(tmp_path: Path, text: str, words: list[str]) -> None:
    message = problem(tmp_path, text)

    assert [word for word in words if word not in message] == []


def test_an_unknown_profile_is_an_error_with_near_misses(tmp_path: Path) -> None:
    assert "did you mean 'prod'" in problem(tmp_path, FILE, profile="prot")


def test_a_config_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.toml: cannot be read: No such file"):
        config.load(config=Path("nope.toml"), environ={}, directory=tmp_path)


# ---------------------------------------------------------------- kinds of values


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (3, 3.0),
        (0.5, 0.5),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1.5m", 90.0),
        ("10", 10.0),
    ],
)
def test_durations_are_seconds_or_strings_with_units(value: object, seconds: float) -> None:
    assert config.parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", " ", "soon", "5 apples", "-3s", -1, True, None, "s", "inf"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        config.parse_duration(value)


@pytest.mark.parametrize(("value", "size"), [(5, 5), ("5", 5), ("1K", 1000), ("1KB", 1024), ("1.5MiB", 1572864)])
def test_sizes_are_bytes_or_strings_as_nats_server_reads_them(value: object, size: int) -> None:
    assert config.parse_size(value) == size


@pytest.mark.parametrize("value", ["", "big", "-1", -1, 1.5, True, None, "1XB"])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        config.parse_size(value)


# ---------------------------------------------------------------- schedules


def test_a_schedule_of_the_file_is_read(tmp_path: Path) -> None:
    text = """
[schedules.nightly]
task = "Digest"
data = { day = "yesterday" }
cron = "0 0 3 * * *"
tz = "Europe/Berlin"
to = "summarizer"
deadline = "1h"
[schedules.poll]
task = "Poll"
every = "5m"
"""
    found = load(tmp_path, text).schedules

    assert (found["nightly"].deadline, found["nightly"].data) == (3600.0, {"day": "yesterday"})
    assert found["poll"].every == 300.0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('task = "T"\ncron = "0 3 * * *"', "seconds come first"),
        ('task = "T"\nevery = "500ms"', "1 or more seconds"),
        ('task = "T"', "either every or cron"),
        ('task = "T"\nevery = 5\ncron = "@daily"', "either every or cron"),
        ('task = "T"\nevery = 5\ntz = "UTC"', "no time zone"),
        ('task = "T"\nevery = 5\nto = "a b"', "is not allowed"),
        ('task = "T"\nevery = 5\npriority = "urgent"', "expected"),
        ("every = 5", "is missing"),
        ('task = "T"\nevry = 5', "did you mean 'every'"),
    ],
)
def test_a_schedule_of_the_file_that_cannot_be_is_named(tmp_path: Path, entry: str, said: str) -> None:
    found = problem(tmp_path, f"[schedules.nightly]\n{entry}\n")

    assert "schedules.nightly" in found
    assert said in found


def test_the_name_of_a_schedule_is_a_name(tmp_path: Path) -> None:
    assert "schedules.a b" in problem(tmp_path, '[schedules."a b"]\ntask = "T"\nevery = 5\n')
