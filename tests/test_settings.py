"""The configuration: what is read, in which order, and what every mistake is told."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from kvstore import settings
from kvstore.config import (
    Config,
    CxlConfig,
    DramConfig,
    GiB,
    HbmConfig,
    MiB,
    NamespaceConfig,
    NvmeConfig,
    PeersConfig,
    RemoteConfig,
    ServerConfig,
)
from kvstore.errors import ConfigError
from kvstore.schema import TABLES, keys, parse_seconds, scalar_keys

FULL = """\
# every kind of value
[store]
max_chunks = 1000
lease_limit_s = "2m"
flush_on_close = false

[dram]
capacity = "4GiB"
extent = 536870912

[nvme]
path = "data"
capacity = "100GB"

[cxl]
nodes = [1, 2]
capacity = "8GiB"

[remote]
url = "s3://bucket/prefix"
username = "key"
password = "secret-4"
ca = "ca.pem"

[server]
listen = "127.0.0.1:0"

[[namespace]]
name = "default"

[[namespace]]
name = "team-a"
quota = "1.5GiB"
ttl_s = "1h"
tokens = ["secret-1"]
tokens_file = "tokens"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "kvstore.toml"
    path.write_text(text)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text("# rotated in May\nsecret-2\n\nsecret-3\n")
    return write(tmp_path, FULL)


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert settings.load(None, {}) == Config()


def test_a_file_is_read_whole(full: Path, tmp_path: Path) -> None:
    config = settings.load(full, {})
    assert config.dram == DramConfig(4 * GiB, 512 * MiB)
    assert config.nvme == NvmeConfig(tmp_path / "data", 100 * 10**9)
    assert config.cxl == CxlConfig((1, 2), capacity=8 * GiB)
    assert config.remote == RemoteConfig(
        "s3://bucket/prefix", username="key", password="secret-4", ca=tmp_path / "ca.pem"
    )
    assert config.below == (config.cxl, config.nvme, config.remote)
    assert (config.max_chunks, config.lease_limit_s, config.flush_on_close) == (1000, 120.0, False)
    assert config.server == ServerConfig("127.0.0.1:0")
    default, team = config.namespaces
    assert default == NamespaceConfig("default")
    assert (team.quota, team.ttl_s, team.tokens) == (1536 * MiB, 3600.0, ("secret-1", "secret-2", "secret-3"))


def test_variables_override_the_file_and_flags_both(full: Path) -> None:
    env = {"KVSTORE_DRAM_CAPACITY": "5GiB", "KVSTORE_DRAM_EXTENT": "1GiB", "KVSTORE_STORE_FLUSH_ON_CLOSE": "yes"}
    config = settings.load(full, env, {"dram.capacity": "6GiB"})
    assert config.dram == DramConfig(6 * GiB, 1 * GiB)
    assert config.flush_on_close


def test_lists_come_in_one_string_from_variables_and_flags() -> None:
    env = {"KVSTORE_CXL_PATHS": "/dev/dax0.0:/dev/dax1.0", "KVSTORE_REMOTE_URL": "file:///mnt"}
    config = settings.load(None, env, {"cxl.capacity": "1GiB"})
    assert config.cxl == CxlConfig(paths=(Path("/dev/dax0.0"), Path("/dev/dax1.0")), capacity=GiB)
    assert settings.load(None, {}, {"cxl.nodes": "1, 2"}).cxl == CxlConfig((1, 2))
    env = {"KVSTORE_HBM_DEVICES": "cuda:0, cuda:1", "KVSTORE_HBM_CAPACITY": "8GiB"}
    assert settings.load(None, env, {"hbm.slab": "512MiB"}).hbm == HbmConfig(8 * GiB, ("cuda:0", "cuda:1"), 512 * MiB)
    with pytest.raises(ConfigError, match=r"KVSTORE_HBM_DEVICES.*a list of strings"):
        settings.load(None, {"KVSTORE_HBM_DEVICES": "cuda:0,,cuda:1"})
    with pytest.raises(ConfigError, match=r"KVSTORE_CXL_NODES.*a list of numbers"):
        settings.load(None, {"KVSTORE_CXL_NODES": "one"})


@pytest.mark.parametrize(
    ("key", "words"),
    [("nvme.capacity", "a folder"), ("remote.capacity", "a place"), ("hbm.slab", "a capacity")],
)
def test_a_tier_without_its_place_is_refused(key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"\\[{key.split('.', maxsplit=1)[0]}\\] is set up without {words}"):
        settings.load(None, {}, {key: "1GiB"})


def test_the_command_lines_own_variables_are_none_of_ours() -> None:
    assert settings.load(None, {"KVSTORE_URL": "h:1", "KVSTORE_TOKEN": "t", "HOME": "/"}) == Config()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[dram]\ncapacty = 1\n", 2, ["'capacty' in [dram]", "did you mean 'capacity'"]),
        ("[dramm]\ncapacity = 1\n", 1, ["'dramm'", "did you mean 'dram'"]),
        ("\n\nmax_chunk = 1\n", 3, ["'max_chunk'", "known are"]),
        ("[dram]\n\n# how much\ncapacity = '4 gallons'\n", 4, ['"4 gallons"', "512MiB"]),
        ("[dram]\ncapacity = true\n", 2, ["True", "a size"]),
        ("[dram]\ncapacity = 0\n", 2, ["too small: more than 0"]),
        ("[dram]\ncapacity = -1\n", 2, ["too small"]),
        ("[dram]\ncapacity = nan\n", 2, ["a size"]),
        ("[dram]\ncapacity = 1.5\n", 2, ["1.5", "a size"]),
        ("dram.capacity = 'x'\n", 1, ["a size"]),
        ("server = {listen = 'a:1', max_workers = 0}\n", 1, ["server.max_workers = 0", "at least 1"]),
        ("[store]\nlease_limit_s = '5 fortnights'\n", 2, ["5 fortnights", '"60s"']),
        ("[store]\nflush_on_close = 'maybe'\n", 2, ["true or false"]),
        ("[server]\nlisten = 7420\n", 2, ["7420", "a string"]),
        ("[cxl]\nnodes = ['1']\n", 2, ["a list of numbers"]),
        ("[cxl]\nnodes = [true]\n", 2, ["a list of numbers"]),
        ("[remote]\nurl = ''\n", 2, ["a string"]),
        ("[hbm]\ncapacity = '1GiB'\ndevices = [0]\n", 3, ["[0]", "a list of strings"]),
        ("[hbm]\ndevice = 'cuda:0'\n", 2, ["did you mean 'devices'"]),
        ("dram = 4\n", 1, ["write [dram]"]),
        ("[namespace]\nname = 'a'\n", 1, ["[[namespace]]"]),
        ("[[namespace]]\nquota = 1\n", 1, ["needs a name"]),
        ("[[namespace]]\nname = 'a'\n\n[[namespace]]\nname = 'b'\nquotta = 1\n", 6, ["did you mean 'quota'"]),
        ("[[namespace]]\nname = 'a'\n[[namespace]]\nname = 'a'\n", 4, ["'a' is there twice"]),
        ("[[namespace]]\nname = '-a'\n", 2, ["cannot name a namespace"]),
        ("[[namespace]]\nname = 'a'\ntokens = [\n  'x',\n  1,\n]\n", 3, ["a list of strings"]),
        ("[[namespace]]\nname = 'a'\ntokens_file = 'none'\n", 3, ["tokens file", "cannot be read"]),
    ],
)
def test_a_mistake_in_the_file_names_its_line(tmp_path: Path, text: str, line: int, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        settings.load(path, {})
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: "), message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"KVSTORE_DRAM_CAPACTY": "1"}, ["KVSTORE_DRAM_CAPACTY", "did you mean 'KVSTORE_DRAM_CAPACITY'"]),
        ({"KVSTORE_TOKNE": "1"}, ["did you mean 'KVSTORE_TOKEN'"]),
        ({"KVSTORE_DRAM_CAPACITY": "3XB"}, ["KVSTORE_DRAM_CAPACITY", '"3XB"', "a size"]),
        ({"KVSTORE_NVME_CAPACITY": "1GiB"}, ["without a folder", "KVSTORE_NVME_PATH"]),
        ({"KVSTORE_SERVER_TLS_CERT": "a.pem"}, ["tls_key belong together"]),
    ],
)
def test_a_mistake_in_a_variable_names_it(env: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(None, env)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mistake_in_a_flag_names_it() -> None:
    with pytest.raises(ConfigError, match=r"--server-max-workers: server\.max_workers = \"x\" is not a whole number"):
        settings.load(None, {}, {"server.max_workers": "x"})
    with pytest.raises(ConfigError, match=r"unknown key 'dram\.size'"):
        settings.load(None, {}, {"dram.size": "1"})


def test_text_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not TOML.*line 2"):
        settings.load(write(tmp_path, "[dram]\ncapacity = \n"), {})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        settings.load(tmp_path / "none.toml", {})
    (tmp_path / "kvstore.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        settings.load(tmp_path / "kvstore.toml", {})
    (tmp_path / "empty").write_text("# none yet\n")
    with pytest.raises(ConfigError, match="holds no token"):
        settings.read_tokens(tmp_path / "empty")


def test_what_is_rendered_is_read_back_and_shows_no_token(full: Path) -> None:
    config = settings.load(full, {})
    text = settings.render(config)
    assert "secret" not in text
    assert "secret" not in repr(config)
    again = settings.load(write(full.parent, text.replace(settings.MASK, "hidden")), {})
    masked = [replace(each, tokens=()) for each in config.namespaces]
    assert again.remote is not None
    assert again.remote.password == "hidden"
    assert config.remote is not None
    same = replace(again, namespaces=(), remote=replace(again.remote, password=config.remote.password))
    assert same == replace(config, namespaces=())
    assert [replace(each, tokens=()) for each in again.namespaces] == masked


def test_every_key_has_a_flag_a_variable_and_is_rendered() -> None:
    config = Config(
        hbm=HbmConfig(GiB), cxl=CxlConfig(), nvme=NvmeConfig(Path("x")), peers=PeersConfig(),
        remote=RemoteConfig("valkey://x"),
    )  # fmt: skip
    data = tomllib.loads(settings.render(config))
    for key in scalar_keys():
        owner = config if key.table == "store" else getattr(config, key.table)
        assert (key.name in data[key.table]) == (getattr(owner, key.name) is not None), key
    assert len({key.variable for key in scalar_keys()}) == len({key.flag for key in scalar_keys()}) == 71


@pytest.mark.parametrize(("text", "seconds"), [("60", 60.0), ("500ms", 0.5), ("5m", 300.0), ("1.5 h", 5400.0)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


def test_the_documentation_lists_every_key_with_its_default() -> None:
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    shown = Config(
        hbm=HbmConfig(8 * GiB),
        cxl=CxlConfig((1,), capacity=64 * GiB),
        nvme=NvmeConfig(Path("/var/lib/kvstore")),
        peers=PeersConfig("valkey://cache.example:6379", token="secret"),
        remote=RemoteConfig("valkey://cache.example:6379"),
    )
    assert settings.render(shown) in text
    for table in TABLES:
        for key in keys(table).values():
            assert f"`{key.name}`" in text, key.dotted


def test_a_wrong_codec_is_told_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[dram]\ncapacity = "1GiB"\n\n[nvme]\npath = "x"\ncodec = "zst"\n')
    with pytest.raises(ConfigError, match=r"kvstore.toml:6: nvme.codec = 'zst'.*did you mean 'zstd'"):
        settings.load(path, {})
    path = write(tmp_path, '[[namespace]]\nname = "a"\ncodec = "kivi:3"\nlossy = true\n')
    with pytest.raises(ConfigError, match=r"kvstore.toml:3: namespace.codec = 'kivi:3': kivi has no level '3'"):
        settings.load(path, {})
    with pytest.raises(ConfigError, match=r"KVSTORE_DRAM_CODEC: dram.codec = 'nothing'"):
        settings.load(None, {"KVSTORE_DRAM_CODEC": "nothing"})


def test_a_wrong_policy_is_told_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[store]\npolicy = "s3-fifo"\n')
    with pytest.raises(ConfigError, match=r"kvstore.toml:2: store.policy = 's3-fifo'.*did you mean 's3fifo'"):
        settings.load(path, {})
    path = write(tmp_path, '[[namespace]]\nname = "a"\npolicy = "clock"\n')
    with pytest.raises(ConfigError, match=r"kvstore.toml:3: namespace.policy = 'clock': there is no such policy"):
        settings.load(path, {})
    with pytest.raises(ConfigError, match=r'store.policy = 3 is not the name of an eviction policy, like "value"'):
        settings.load(write(tmp_path, "[store]\npolicy = 3\n"), {})
    path = write(tmp_path, '[store]\npolicy = "arc"\n[[namespace]]\nname = "a"\npolicy = "mq"\n')
    config = settings.load(path, {})
    assert (config.policy, config.namespaces[0].policy) == ("arc", "mq")
    assert settings.load(None, {"KVSTORE_STORE_POLICY": "gdsf"}).policy == "gdsf"


def test_what_a_tier_admits(tmp_path: Path) -> None:
    path = write(tmp_path, '[nvme]\npath = "x"\nadmit = "twice"\n')
    with pytest.raises(ConfigError, match=r'kvstore.toml:3: nvme.admit = "twice" is not "all" or "second-touch"'):
        settings.load(path, {})
    with pytest.raises(ConfigError, match=r"--nvme-write-bytes-per-day: nvme.write_bytes_per_day = .* is not a size"):
        settings.load(None, {"KVSTORE_NVME_PATH": "x"}, {"nvme.write_bytes_per_day": "1 drive"})
    with pytest.raises(ConfigError, match=r"unknown key 'write_bytes_per_day' in \[cxl\]"):
        settings.load(write(tmp_path, '[cxl]\nwrite_bytes_per_day = "1TB"\n'), {})
    given = '[nvme]\npath = "x"\nadmit = "second-touch"\nwrite_bytes_per_day = "2TB"\n[remote]\nurl = "s3://b"\n'
    config = settings.load(write(tmp_path, given), {"KVSTORE_REMOTE_ADMIT": "second-touch"})
    assert config.nvme is not None
    assert config.remote is not None
    assert (config.nvme.admit, config.nvme.write_bytes_per_day) == ("second-touch", 2 * 10**12)
    assert (config.remote.admit, config.remote.write_bytes_per_day) == ("second-touch", 0)
    assert settings.load(write(tmp_path, settings.render(config)), {}) == config


def test_a_lossy_codec_needs_the_namespaces_opt_in(tmp_path: Path) -> None:
    path = write(tmp_path, '[[namespace]]\nname = "a"\ncodec = "int4"\n')
    with pytest.raises(ConfigError, match=r"kvstore.toml:3: namespace.codec = 'int4' is lossy.*set lossy = true"):
        settings.load(path, {})
    path = write(tmp_path, '[[namespace]]\nname = "a"\ncodec = "int4"\nlossy = true\n')
    assert settings.load(path, {}).namespaces == (NamespaceConfig("a", codec="int4", lossy=True),)


def test_artefacts_are_paths_from_the_files_folder(tmp_path: Path) -> None:
    path = write(tmp_path, '[codecs]\nartefacts = ["a", "/b"]\n')
    config = settings.load(path, {})
    assert config.codecs.artefacts == (tmp_path / "a", Path("/b"))
    assert settings.load(None, {"KVSTORE_CODECS_ARTEFACTS": "c:/d"}).codecs.artefacts == (Path("c"), Path("/d"))
    assert settings.load(write(tmp_path, settings.render(config)), {}).codecs == config.codecs
