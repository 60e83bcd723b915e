"""What many ask for at once is done once."""

import asyncio

import pytest

from api.single_flight import SingleFlight


async def test_all_who_ask_while_it_runs_get_one_answer_and_the_next_call_is_new() -> None:
    flight: SingleFlight[int] = SingleFlight()
    calls = 0
    go = asyncio.Event()

    async def work() -> int:
        nonlocal calls
        calls += 1
        number = calls
        await go.wait()
        return number

    asked = [asyncio.create_task(flight.run("a", work)) for _ in range(10)]
    other = asyncio.create_task(flight.run("b", work))
    await asyncio.sleep(0)
    go.set()
    assert set(await asyncio.gather(*asked)) == {1}
    assert await other == 2
    assert await flight.run("a", work) == 3


async def test_who_gives_up_does_not_stop_it_for_the_others() -> None:
    flight: SingleFlight[str] = SingleFlight()
    go = asyncio.Event()

    async def work() -> str:
        await go.wait()
        return "done"

    impatient = asyncio.create_task(flight.run("a", work))
    patient = asyncio.create_task(flight.run("a", work))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    go.set()
    assert await patient == "done"


async def test_an_error_reaches_all_who_asked_and_is_not_remembered() -> None:
    flight: SingleFlight[str] = SingleFlight()

    async def fail() -> str:
        await asyncio.sleep(0)
        raise ValueError("no")

    async def work() -> str:
        return "fine"

    results = await asyncio.gather(*(flight.run("a", fail) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["no"] * 3
    assert await flight.run("a", work) == "fine"
