"""The bookkeeping of publisher confirms, answer by answer."""

import pika
import pytest

from forwarders.amqp_attempt import Attempt, Message, Outcome


def attempt(ids: list[str], *, first_tag: int = 1, published: int | None = None) -> Attempt:
    """An attempt whose messages have these ids, the first ``published`` of them published."""

    def message(position: int) -> Message:
        return Message("key", b"body", pika.BasicProperties(message_id=ids[position]))

    made = Attempt(len(ids), message)
    made.first_tag = first_tag
    list(made.take(len(ids) if published is None else published))
    return made


def test_a_message_is_confirmed_by_its_own_answer_or_by_one_for_all_up_to_it() -> None:
    tried = attempt(list("abcdef"))
    tried.answer(2, multiple=False, is_ack=True)
    assert tried.result().confirmed == [1]
    tried.answer(4, multiple=True, is_ack=True)

    assert tried.result() == Outcome(confirmed=[0, 1, 2, 3])
    assert (tried.settled, tried.is_settled) == (4, False)


def test_tags_count_on_from_earlier_attempts_of_the_channel() -> None:
    tried = attempt(list("abc"), first_tag=101)
    tried.answer(102, multiple=True, is_ack=True)
    tried.answer(103, multiple=False, is_ack=True)

    assert tried.result().confirmed == [0, 1, 2]
    assert tried.is_settled


def test_a_nack_is_no_confirm_and_a_later_answer_for_all_does_not_change_it() -> None:
    tried = attempt(list("abcd"))
    tried.answer(2, multiple=False, is_ack=False)
    tried.answer(3, multiple=True, is_ack=True)
    tried.answer(4, multiple=True, is_ack=False)

    assert tried.result() == Outcome(confirmed=[0, 2], rejected=[1, 3])
    assert tried.is_settled


def test_what_comes_back_is_not_confirmed_although_the_broker_acks_it() -> None:
    tried = attempt(list("abc"))
    tried.return_("b")
    tried.answer(3, multiple=True, is_ack=True)

    assert tried.result() == Outcome(confirmed=[0, 2], returned=[1])


def test_of_messages_with_one_id_none_is_confirmed_when_one_comes_back() -> None:
    tried = attempt(["", "", "c"])
    tried.return_("")
    tried.answer(3, multiple=True, is_ack=True)

    assert tried.result() == Outcome(confirmed=[2], returned=[0, 1])


def test_what_was_not_published_or_answered_is_nowhere() -> None:
    tried = attempt(list("abcd"), published=2)
    tried.answer(1, multiple=False, is_ack=True)

    assert tried.result("lost", 320) == Outcome(confirmed=[0], failure="lost", code=320)
    assert not tried.is_published


@pytest.mark.parametrize(("in_flight", "answered", "taken"), [(2, 0, 2), (2, 1, 3), (10, 0, 5), (2, 5, 5)])
def test_only_so_many_wait_for_their_answers(in_flight: int, answered: int, taken: int) -> None:
    tried = attempt(list("abcde"), published=in_flight)
    for tag in range(1, answered + 1):
        tried.answer(tag, multiple=False, is_ack=True)
        list(tried.take(in_flight))

    assert len(tried._ids) == taken
