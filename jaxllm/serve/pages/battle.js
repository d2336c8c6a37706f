// The page of blind battles: two answers side by side, a verdict by a key or a tap, and the next.

import { find } from "./dom.js";
import { Judge, say } from "./judge.js";

const KEYS = { arrowleft: "left", a: "left", arrowright: "right", b: "right", arrowup: "tie", arrowdown: "bad" };
const SHOWN_MILLISECONDS = 160; // a verdict is seen before the page goes on
let battles = 0; // in all

const buttons = () => document.querySelectorAll("[data-verdict]");

function count(judged) {
  find("count").textContent = `${judged} of ${battles} judged`;
}

/** Colours the answers by a verdict; "" is none. */
function mark(verdict) {
  for (const side of ["left", "right"]) {
    const name = verdict === "bad" ? "rejected" : verdict === "tie" || verdict === side ? "chosen" : "";
    find(side).parentElement.className = `side ${name}`;
  }
}

class Battles extends Judge {
  /** Shows a battle, or that there is none left. */
  show(next) {
    battles = next.battles;
    count(next.judged);
    find("over").hidden = Boolean(next.battle);
    super.show(next.battle ? next : null);
  }

  draw() {
    for (const side of ["left", "right"]) find(side).textContent = this.current[side] || "(nothing)";
    mark("");
  }

  vote(verdict) {
    return this.act(async () => {
      if (!this.current) return;
      mark(verdict);
      for (const button of buttons()) button.disabled = true;
      try {
        const [{ judged }] = await Promise.all([this.settle("vote", { verdict, seconds: this.seconds }),
          new Promise((resolve) => { setTimeout(resolve, SHOWN_MILLISECONDS); })]);
        await this.advance();
        count(judged); // the next was asked for before this was saved
        say("Saved.");
      } finally {
        for (const button of buttons()) button.disabled = false;
      }
    });
  }

  press(key, event) {
    if (event.altKey || !KEYS[key]) return false;
    this.vote(KEYS[key]);
    return true;
  }

  askWho() {
    find("over").hidden = true;
    super.askWho();
  }
}

const judge = new Battles("/battles", "battle");
for (const button of buttons()) button.addEventListener("click", () => judge.vote(button.dataset.verdict));
find("undo-last").addEventListener("click", () => judge.undo());
judge.start();
