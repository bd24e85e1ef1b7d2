#!/usr/bin/env python3
"""Synthetic conversations: an assistant that answers from the facts in its system prompt.

Every system prompt is about an invented business and holds 3 to 10 facts with random values;
sometimes it also asks to end every answer with a phrase. The answer to every question is one
exact string, so accuracy can be counted. A question about a missing fact is answered with
"I am sorry, I do not know that."

As a program it prints questions for a test, one JSON object a line (--json) or as text:

    gen.py --seed 20261 --count 200 --json
"""
import argparse
import json
import random

FIRST = """Anna Ben Clara David Ella Frank Grace Henry Ida Jack Kara Leo Maria Noah Olga Paul Rosa
Sam Tina Victor Wendy Yusuf Zoe Amir Bella Carlos Dora Emil Fatima Georg Hana Ivan Julia Karim Lena
Marco Nina Oscar Petra Quinn Rita Simon Tara Uma Vera Walter Xenia Yara Zach Bruno Celia Dario Edith
Felix Gina Hugo Irene Jonas Kate Liam Mona Nils Opal Pia""".split()
COLOR = "red blue green yellow purple orange white black silver golden brown pink grey".split()
THING = """Harbor River Mountain Garden Forest Lantern Bridge Castle Meadow Island Valley Station
Market Tower Orchard Falcon Willow Maple Anchor Comet""".split()
KIND = ["bakery", "library", "museum", "hotel", "bookshop", "cafe", "clinic", "garage", "school",
        "gym", "theatre", "restaurant", "bank", "pharmacy", "zoo", "cinema", "farm shop",
        "ferry line", "bike shop", "post office"]
CITY = """Oslo Lisbon Dublin Geneva Prague Athens Kyoto Lima Cairo Boston Denver Austin Perth Quebec
Bergen Seville Krakow Turin Lyon Ghent""".split()
FOOD = """bread soup cake tea coffee salad pizza pasta cheese honey apples pears rice beans fish pie
juice cocoa toast curry waffles olives""".split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
STREET = "Oak Elm Mill King Queen Bridge Church North South Lake Park Hill Station Green Rose".split()
END = ["Have a nice day!", "Ahoy!", "Thank you!", "See you soon!", "Take care!"]
UNKNOWN = "I am sorry, I do not know that."
NO_FACTS = ("I am a small demo model. I answer questions from the facts in my system prompt, "
            "and I tell short stories.")


def number(low, high):
    return lambda r: str(r.randint(low, high))


def choice(values):
    return lambda r: r.choice(values)


# key: (value drawn with a random.Random, ways to state it, ways to ask for it, the answer)
FACTS = {
    "open": (number(5, 11),
             ["We open at {v} in the morning.", "Opening time: {v} am.", "The doors open at {v} am."],
             ["When do you open?", "What time do you open?", "How early are you open?"],
             "We open at {v} in the morning."),
    "close": (number(3, 11),
              ["We close at {v} in the evening.", "Closing time: {v} pm.",
               "The doors close at {v} pm."],
              ["When do you close?", "What time do you close?", "How late are you open?"],
              "We close at {v} in the evening."),
    "manager": (choice(FIRST),
                ["The manager is {v}.", "Manager: {v}.", "{v} is the manager."],
                ["Who is the manager?", "Who is in charge?", "What is the name of the manager?"],
                "The manager is {v}."),
    "owner": (choice(FIRST),
              ["The owner is {v}.", "Owner: {v}.", "{v} owns the place."],
              ["Who is the owner?", "Who owns the place?", "What is the name of the owner?"],
              "The owner is {v}."),
    "phone": (lambda r: f"{r.randint(100, 999)} {r.randint(1000, 9999)}",
              ["The phone number is {v}.", "Phone: {v}.", "Customers can call {v}."],
              ["What is your phone number?", "How can I call you?", "Which number do I call?"],
              "You can call us at {v}."),
    "door": (number(1000, 9999),
             ["The door code is {v}.", "Door code: {v}."],
             ["What is the door code?", "How do I open the door?", "Which code opens the door?"],
             "The door code is {v}."),
    "wifi": (lambda r: r.choice(COLOR) + r.choice(THING).lower() + str(r.randint(10, 99)),
             ["The wifi password is {v}.", "Wifi password: {v}."],
             ["What is the wifi password?", "How do I get on the wifi?",
              "Can I have the wifi password?"],
             "The wifi password is {v}."),
    "city": (choice(CITY),
             ["We are in {v}.", "City: {v}.", "The place is in {v}."],
             ["Which city are you in?", "In which city is it?", "What city is that?"],
             "We are in {v}."),
    "street": (lambda r: f"{r.randint(1, 199)} {r.choice(STREET)} Street",
               ["The address is {v}.", "Address: {v}."],
               ["What is the address?", "Where are you?", "Where can I find you?"],
               "You can find us at {v}."),
    "special": (choice(FOOD),
                ["The special today is {v}.", "Special of the day: {v}."],
                ["What is the special today?", "What is the special of the day?",
                 "What do you have today?"],
                "The special today is {v}."),
    "price": (number(2, 99),
              ["A ticket costs {v} dollars.", "Ticket price: {v} dollars.",
               "Tickets are {v} dollars each."],
              ["How much is a ticket?", "What does a ticket cost?",
               "What is the price of a ticket?"],
              "A ticket costs {v} dollars."),
    "refund": (number(5, 90),
               ["Refunds are given within {v} days.", "Refund period: {v} days."],
               ["How long can I ask for a refund?", "What is the refund period?",
                "How many days do I have for a refund?"],
               "You can ask for a refund within {v} days."),
    "closed": (choice(DAY),
               ["We are closed on {v}.", "Closed day: {v}.", "On {v} we do not work."],
               ["Which day are you closed?", "When are you closed?", "What day do you not work?"],
               "We are closed on {v}."),
    "color": (choice(COLOR),
              ["The door is painted {v}.", "Door colour: {v}."],
              ["What colour is the door?", "Which colour is your door?"],
              "The door is {v}."),
    "room": (number(1, 400),
             ["Lost things are kept in room {v}.", "Lost and found: room {v}."],
             ["Where are lost things kept?", "I lost my bag. Where do I go?",
              "Where is lost and found?"],
             "Please go to room {v}."),
    "bus": (number(1, 99),
            ["Bus {v} stops in front.", "Nearest bus: {v}."],
            ["Which bus do I take?", "What bus stops there?", "How do I come by bus?"],
            "Take bus {v}."),
    "members": (number(10, 900),
                ["We have {v} members.", "Members: {v}."],
                ["How many members do you have?", "How many people are members?"],
                "We have {v} members."),
    "since": (number(1801, 2020),
              ["We opened in the year {v}.", "Founded: {v}."],
              ["What year did you start?", "When was it founded?", "How old is the place?"],
              "We started in the year {v}."),
}
GREETING = ["Who are you?", "Hello!", "What is this place?"]


class Business:
    """An invented business: its system prompt, and questions with their exact answers."""

    def __init__(self, r, facts=None):
        self.r = r
        self.keys = r.sample(list(FACTS), facts or r.randint(3, 10))
        self.missing = [k for k in FACTS if k not in self.keys]
        self.values = {k: FACTS[k][0](r) for k in self.keys}
        self.name = r.choice(COLOR).capitalize() + " " + r.choice(THING)
        self.kind = r.choice(KIND)
        self.end = r.choice(END) if r.random() < .35 else None
        lines = [r.choice(FACTS[k][1]).format(v=self.values[k]) for k in self.keys]
        self.system = " ".join([r.choice([
            f"You are the assistant of {self.name}, a {self.kind}.",
            f"You answer questions for the {self.kind} {self.name}.",
            f"You work for {self.name}, a {self.kind}. Answer from these facts."])] + lines)
        if self.end:
            self.system += f' End every answer with "{self.end}"'

    def _turn(self, question, answer):
        return question, answer + (" " + self.end if self.end else "")

    def ask(self, key):
        """A question about one fact, present or missing."""
        answer = FACTS[key][3].format(v=self.values[key]) if key in self.values else UNKNOWN
        return self._turn(self.r.choice(FACTS[key][2]), answer)

    def greet(self):
        question = self.r.choice(GREETING)
        if question == "What is this place?":
            return self._turn(question, f"This is {self.name}, a {self.kind}.")
        return self._turn(question, f"I am the assistant of {self.name}, a {self.kind}.")

    def turn(self):
        """A question as the evaluation draws it: mostly about a fact that is there."""
        p = self.r.random()
        if p < .82:
            return self.ask(self.r.choice(self.keys))
        if p < .90:
            return self.ask(self.r.choice(self.missing))
        return self.greet()

    def turns_on_everything(self, extra=2):
        """Every fact once and some other questions: many training signals for one prompt."""
        turns = [self.ask(k) for k in self.keys]
        for _ in range(self.r.randint(0, extra)):
            turns.append(self.ask(self.r.choice(self.missing)) if self.r.random() < .6
                         else self.greet())
        self.r.shuffle(turns)
        return turns


def question(r, facts=None):
    """(system, question, answer), from the distribution that is evaluated."""
    business = Business(r, facts)
    return (business.system, *business.turn())


def small_talk(r):
    """A conversation without facts: the model says what it is, or that it does not know."""
    system = r.choice([None, None, "You are a helpful assistant.", "You are a friendly assistant."])
    turns = []
    for _ in range(r.randint(1, 2)):
        if r.random() < .6:
            turns.append((r.choice(["Hello!", "Hi!", "Who are you?", "What can you do?", "Hello",
                                    "What are you?", "Can you help me?"]), NO_FACTS))
        else:
            turns.append((r.choice(FACTS[r.choice(list(FACTS))][2]), UNKNOWN))
    return system, turns


def stories(path):
    """(request, story) pairs; the file is shuffled already, blank lines are left out."""
    with open(path) as f:
        rows = [json.loads(line) for line in f]
    return [(row["user"], row["assistant"].replace("\n\n", "\n")) for row in rows]


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=20261, help="seed (default %(default)s)")
    p.add_argument("--count", type=int, default=200, help="questions (default %(default)s)")
    p.add_argument("--facts", type=int, help="facts in a system prompt (default: 3 to 10)")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    args = p.parse_args()
    r = random.Random(args.seed)
    for _ in range(args.count):
        system, asked, answer = question(r, args.facts)
        if args.json:
            print(json.dumps({"system": system, "question": asked, "answer": answer}))
        else:
            print(f"{system}\n  Q: {asked}\n  A: {answer}\n")


if __name__ == "__main__":
    main()
