"""Keys and passwords are in no text that leaves."""

import logging

import pytest

from cwdpo.config import secrets
from cwdpo.config.recipe import NegativesConfig
from cwdpo.config.secrets import Redacting, check_url, protect, protect_environment, redact, redact_json
from cwdpo.errors import ConfigError, shortened

KEY = 'sk-pro"j/4&x+9'


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_forms", {})


@pytest.mark.parametrize(
    "text", [f"Bearer {KEY}.", 'sk-pro\\"j/4&x+9', "sk-pro&quot;j/4&amp;x+9", "?k=sk-pro%22j%2F4%26x%2B9&"]
)
def test_a_key_is_found_in_every_spelling(text: str) -> None:
    protect(KEY)
    assert "pro" not in redact(text)
    assert secrets.HIDDEN in redact(text)


def test_short_words_are_no_secrets_and_long_ones_go_first() -> None:
    for word in ("EMPTY", "1234567", "12345678", "12345678-long"):
        protect(word)
    assert redact("EMPTY 1234567 12345678 12345678-long") == "EMPTY 1234567 <secret> <secret>"


@pytest.mark.parametrize("url", ["http://me:geheim@host/v1", "postgres://geheim@h", "x https://a:geheim@b:80/c d"])
def test_a_password_in_a_url_needs_no_protection(url: str) -> None:
    assert "geheim" not in redact(url)
    assert redact("see http://host/a@b and me@x.org") == "see http://host/a@b and me@x.org"


def test_json_is_redacted_to_its_leaves() -> None:
    protect("geheim-geheim")
    value = {"geheim-geheim": [1, None, {"x": "a geheim-geheim b"}], "lone": "\ud800", "pair": "\ud83d\ude00"}
    assert redact_json(value) == {"<secret>": [1, None, {"x": "a <secret> b"}], "lone": "\ufffd", "pair": "😀"}


def test_the_environment_says_which_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "DB_PASSWORD", "PLAIN_NAME"):
        monkeypatch.setenv(name, f"value-of-{name.lower()}\n")
    protect_environment()
    assert redact("value-of-hf_token value-of-db_password") == "<secret> <secret>"
    assert redact("value-of-plain_name") == "value-of-plain_name"


def test_logs_are_redacted_with_their_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    protect("geheim-geheim")
    caplog.handler.addFilter(Redacting())
    try:
        raise ValueError("of geheim-geheim")
    except ValueError:
        logging.getLogger("x").warning("it is %s", "geheim-geheim", exc_info=True)
    assert "geheim" not in caplog.text
    assert "it is <secret>" in caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://[::1/v1", "http://host:port/v1", "http://ho st", "http://h\n/v1",
     "http://host:99999999/v1", "http://" + "x" * 5000 + " "],
)  # fmt: skip
def test_what_is_no_url_is_said_in_a_short_line(url: str) -> None:
    with pytest.raises(ConfigError, match=r"the endpoint .* is not a URL\. Write one such as") as raised:
        check_url(url, "the endpoint")
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://me:geheim@host/v1", "http://geheim@host/v1", "http://host/v1?key=geheim"])
@pytest.mark.parametrize("key", ["endpoint", "judge"])
def test_settings_hold_no_url_with_a_secret(url: str, key: str) -> None:
    with pytest.raises(Exception, match="OPENAI_API_KEY") as raised:
        NegativesConfig(**{key: url})  # type: ignore[arg-type]
    assert "names a server, which is a URL with a name, a password or a query" in str(raised.value)
    check_url("http://127.0.0.1:8000/v1", "x")
    assert NegativesConfig(endpoint="http://127.0.0.1:8000/v1").endpoint == "http://127.0.0.1:8000/v1"


def test_long_values_keep_both_ends() -> None:
    assert shortened("x" * 80) == "x" * 80
    assert len(shortened("x" * 81)) == 80
    assert shortened("begin" + "x" * 1000 + "end").startswith("beginx")
    assert shortened("begin" + "x" * 1000 + "end").endswith("...xxxxxxxxxxxxxxxxxxxxxxxend")
