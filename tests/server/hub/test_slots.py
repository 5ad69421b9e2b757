"""No more slots are taken than there are, none is lost, and any thread may free one."""

import asyncio
from threading import Thread

import pytest

from server.hub.slots import Slots


async def _turns() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def _release(slots: Slots) -> None:
    thread = Thread(target=slots.release)
    thread.start()
    thread.join()


async def _taken(slots: Slots) -> int:
    """Take all free slots, and return how many there were."""
    count = 0
    while True:
        waiting = asyncio.ensure_future(slots.acquire())
        await _turns()
        if not waiting.done():
            waiting.cancel()
            await _turns()
            return count
        count += 1


def test_slots_are_given_in_order_of_arrival_by_any_thread() -> None:
    async def main() -> None:
        slots, order = Slots(2), list[str]()

        async def take(name: str) -> None:
            await slots.acquire()
            order.append(name)

        tasks = [asyncio.ensure_future(take(name)) for name in "abcd"]
        await _turns()
        assert order == ["a", "b"]
        _release(slots)
        await _turns()
        assert order == ["a", "b", "c"]
        _release(slots)
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "c", "d"]

    asyncio.run(main())


@pytest.mark.parametrize("late", [False, True])
def test_a_waiter_that_stops_waiting_loses_no_slot(late: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        slots = Slots(1)
        await slots.acquire()
        waiting = asyncio.ensure_future(slots.acquire())
        await _turns()
        if late:  # it was given the slot, but has not noticed yet
            _release(slots)
        waiting.cancel()
        await _turns()
        assert waiting.cancelled()
        if not late:
            _release(slots)
        assert await _taken(slots) == 1

    asyncio.run(main())


def test_a_freed_slot_goes_to_the_waiter_that_is_still_waiting() -> None:
    async def main() -> None:
        slots = Slots(1)
        await slots.acquire()
        leaving, staying = (asyncio.ensure_future(slots.acquire()) for _ in range(2))
        await _turns()
        _release(slots)
        leaving.cancel()
        await asyncio.wait_for(staying, 10)
        assert await _taken(slots) == 0

    asyncio.run(main())


def test_a_slot_may_be_freed_after_its_loop_was_closed() -> None:
    slots, loop = Slots(0), asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would report the task that waits forever
    waiting = loop.create_task(slots.acquire())
    loop.run_until_complete(_turns())
    loop.close()
    slots.release()
    del waiting
