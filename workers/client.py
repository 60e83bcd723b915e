"""The connection to Temporal."""

import functools
import re

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from messages.urls import without_user_info
from workers.errors import ASK_THE_DOCTOR, StackError

_USUAL_ADDRESS = "localhost:7233"


def client_config(address: str | None = None) -> ClientConnectConfig:
    """Return how to connect to ``address``, or as ``TEMPORAL_*`` and ``temporal.toml`` say. Raises ``StackError``."""
    try:
        config = ClientConnectConfig(target_host=address) if address else ClientConfig.load_client_connect_config()
    except (RuntimeError, ValueError) as e:
        raise StackError(f"the configuration of the Temporal client cannot be used: {e}") from e
    if not config.get("target_host"):
        config["target_host"] = _USUAL_ADDRESS
    return config


async def connect(address: str | None = None, *, lazy: bool = False) -> Client:
    """Connect with our data converter: to ``address``, or where ``TEMPORAL_*`` and ``temporal.toml`` say.

    ``lazy``: connect at the first use, so that Temporal may be away now. Raises ``StackError``.
    """
    config = client_config(address)
    _quieten_core()
    target = config.get("target_host") or _USUAL_ADDRESS
    try:
        return await Client.connect(
            target,
            namespace=config.get("namespace", "default"),
            api_key=config.get("api_key"),
            tls=config.get("tls"),
            rpc_metadata=config.get("rpc_metadata", {}),
            data_converter=pydantic_data_converter,
            lazy=lazy,
        )
    except (RuntimeError, ValueError) as e:
        raise StackError(
            f"Temporal does not answer at {without_user_info(target)} ({without_user_info(_reason(e))}); "
            f"start it, or set TEMPORAL_ADDRESS; {ASK_THE_DOCTOR}"
        ) from e


@functools.cache
def _quieten_core() -> None:
    """Let the SDK's core say only errors: it warns of each attempt to reach a server that is away.

    They are not forwarded to Python's logging: that aborts the process (SIGABRT) when it ends at the wrong moment.
    """
    logs = LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=logs)), error_if_already_set=False)


def _reason(error: Exception) -> str:
    """Shorten the SDK's nested text to the message inside, where there is one."""
    text = (str(error).strip().splitlines() or ["no reason given"])[0]
    inner = re.search(r'message: "([^"]+)"', text)
    return inner[1].lower() if inner else text[:200]
