// An order in the making: what is placed, best first, with ties; and what is not yet.

export class Order {
  /** Of `count` things, numbered from 0; `tiers` is an order to begin with. */
  constructor(count, tiers) {
    this.placed = (tiers ?? []).flatMap((tier) => tier.map((number, i) => ({ number, tied: i > 0 })));
    this.rest = [...Array(count).keys()].filter((number) => !this.has(number));
  }

  get complete() {
    return !this.rest.length && this.placed.length > 0;
  }

  has(number) {
    return this.placed.some((entry) => entry.number === number);
  }

  /** All numbers as they stand on the page. */
  all() {
    return [...this.placed.map(({ number }) => number), ...this.rest];
  }

  /** Whether what stands at a place is tied with what stands above it. */
  tiedAt(place) {
    return this.placed[place].tied;
  }

  /** 1 for the best tier, 2 for the next. */
  rankOf(number) {
    const place = this.placed.findIndex((entry) => entry.number === number);
    return this.placed.slice(0, place + 1).filter(({ tied }) => !tied).length;
  }

  /** Puts a thing behind all that are placed; when one is left over, its place is clear too. */
  place(number) {
    if (this.has(number)) return;
    this.rest = this.rest.filter((other) => other !== number);
    this.placed.push({ number, tied: false });
    if (this.rest.length === 1 && this.placed.length > 0) this.place(this.rest[0]);
  }

  /** Takes a thing out of the order; what it was tied with stays tied. */
  unplace(number) {
    const place = this.placed.findIndex((entry) => entry.number === number);
    if (place < 0) return;
    const [gone] = this.placed.splice(place, 1);
    if (this.placed[place]?.tied && !gone.tied) this.placed[place].tied = false;
    this.rest = [...this.rest, number].sort((a, b) => a - b);
  }

  toggle(number) {
    if (this.has(number)) this.unplace(number);
    else this.place(number);
  }

  /** Takes back the last that was placed; returns its number. */
  takeBack() {
    const last = this.placed.at(-1)?.number;
    if (last !== undefined) this.unplace(last);
    return last;
  }

  /** Ties what stands at a place with what stands above it, or unties it. */
  tie(place) {
    if (place > 0 && place < this.placed.length) this.placed[place].tied = !this.placed[place].tied;
  }

  /** Moves a placed thing up (-1) or down (1); it is tied with nothing afterwards. */
  move(number, by) {
    const place = this.placed.findIndex((entry) => entry.number === number);
    if (place < 0 || place + by < 0 || place + by >= this.placed.length) return;
    this.insert(number, by < 0 ? place - 1 : place + 2);
  }

  /** Puts a thing before what stands at a place of `all()`; among the unplaced that is the end of the placed. */
  insert(number, place) {
    const old = this.placed.findIndex((entry) => entry.number === number);
    let to = Math.min(place, this.placed.length);
    if (old >= 0) {
      const [gone] = this.placed.splice(old, 1);
      if (this.placed[old]?.tied && !gone.tied) this.placed[old].tied = false;
      if (old < to) to -= 1;
    } else this.rest = this.rest.filter((other) => other !== number);
    const within = this.placed[to]?.tied ?? false; // between two that are tied: tied with both
    this.placed.splice(to, 0, { number, tied: within });
    if (old < 0 && this.rest.length === 1) this.place(this.rest[0]);
  }

  /** Lists of tied numbers, best first. */
  tiers() {
    const tiers = [];
    for (const { number, tied } of this.placed) {
      if (tied) tiers.at(-1).push(number);
      else tiers.push([number]);
    }
    return tiers;
  }
}
