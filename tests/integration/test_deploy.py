"""What ``deploy/`` brings, run against the real thing."""

import os
import subprocess
from pathlib import Path

import anyio
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.testing import WorkflowEnvironment

from messages.search_attributes import SEARCH_ATTRIBUTES
from tests.support.temporal import dev_server_path

SCRIPT = Path(__file__).parents[2] / "deploy" / "temporal" / "register-search-attributes.sh"


async def test_the_script_registers_every_search_attribute_and_may_be_repeated() -> None:
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=dev_server_path(), dev_server_log_level="error"
    ) as bare:
        client = bare.client
        address = client.service_client.config.target_host
        env = {**os.environ, "TEMPORAL_ADDRESS": address, "TASKRUNNER_TEMPORAL_BIN": dev_server_path()}
        for _ in range(2):
            ran = await anyio.to_thread.run_sync(
                lambda: subprocess.run(["sh", str(SCRIPT)], env=env, capture_output=True, text=True, check=False)
            )
            assert ran.returncode == 0, ran.stderr
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    assert {key.name for key in SEARCH_ATTRIBUTES} <= set(known.custom_attributes)
