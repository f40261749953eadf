/** One operation of an RFC 6902 JSON Patch. */
export interface Change {
  readonly op: 'add' | 'remove' | 'replace';
  /** An RFC 6901 JSON Pointer; empty for the whole. */
  readonly path: string;
  /** What is there after it; a removal has none. */
  readonly value?: unknown;
}

/** A list that is longer than this, without its values, says less than the configuration itself. */
const MAX_CHARS = 1_048_576;

/** What an operation has besides its path and its value, as JSON. */
const OPERATION_CHARS = 32;

class TooLong extends Error {}

type Members = Record<string, unknown>;

/**
 * What makes one configuration out of another, as an RFC 6902 JSON Patch. Not the shortest there is, but found in one
 * pass: in a list, what is equal at its beginning and its end is left alone, and what is between is compared one by one.
 * Where that would be out of all proportion it is one replacement of the whole.
 */
export function changesBetween(before: object, after: object): Change[] {
  const sameness = new Sameness();
  const changes: Change[] = [];
  let chars = 0;

  const add = (change: Change): void => {
    chars += change.path.length + OPERATION_CHARS;
    if (chars > MAX_CHARS) throw new TooLong();
    changes.push(change);
  };

  const compare = (path: string, from: unknown, to: unknown): void => {
    if (sameness.of(from) === sameness.of(to)) return;
    if (Array.isArray(from) && Array.isArray(to)) compareLists(path, from, to);
    else if (isObject(from) && isObject(to)) compareObjects(path, from, to);
    else add({ op: 'replace', path, value: to });
  };

  const compareObjects = (path: string, from: Members, to: Members): void => {
    for (const [name, value] of Object.entries(from)) {
      if (Object.hasOwn(to, name)) compare(pathTo(path, name), value, to[name]);
      else add({ op: 'remove', path: pathTo(path, name) });
    }
    for (const [name, value] of Object.entries(to))
      if (!Object.hasOwn(from, name)) add({ op: 'add', path: pathTo(path, name), value });
  };

  const compareLists = (path: string, from: readonly unknown[], to: readonly unknown[]): void => {
    const same = (i: number, j: number) => sameness.of(from[i]) === sameness.of(to[j]);
    const shorter = Math.min(from.length, to.length);
    let start = 0;
    while (start < shorter && same(start, start)) start++;
    let end = 0;
    while (end < shorter - start && same(from.length - 1 - end, to.length - 1 - end)) end++;
    const shared = shorter - end;
    for (let i = start; i < shared; i++) compare(`${path}/${i}`, from[i], to[i]);
    // From behind, so that the places of those that are still to go stay as they are.
    for (let i = from.length - end - 1; i >= shared; i--) add({ op: 'remove', path: `${path}/${i}` });
    for (let i = shared; i < to.length - end; i++) add({ op: 'add', path: `${path}/${i}`, value: to[i] });
  };

  try {
    compare('', before, after);
  } catch (error) {
    if (!(error instanceof TooLong)) throw error;
    return [{ op: 'replace', path: '', value: after }];
  }
  return changes;
}

/** Gives equal values equal numbers, looking at each part once however often it is asked for. */
class Sameness {
  private readonly numbers = new Map<string, number>();
  private readonly known = new WeakMap<object, number>();

  of(value: unknown): number {
    if (typeof value !== 'object' || value === null) return this.numberOf(JSON.stringify(value));
    let number = this.known.get(value);
    if (number === undefined) {
      const parts = Array.isArray(value)
        ? value.map((item) => this.of(item))
        : // Sorted: equal whatever the order of the members.
          Object.keys(value)
            .sort()
            .map((name) => `${JSON.stringify(name)}:${this.of((value as Members)[name])}`);
      number = this.numberOf(Array.isArray(value) ? `[${parts}]` : `{${parts}}`);
      this.known.set(value, number);
    }
    return number;
  }

  private numberOf(text: string): number {
    const number = this.numbers.get(text) ?? this.numbers.size;
    this.numbers.set(text, number);
    return number;
  }
}

/**
 * What a JSON Pointer of {@link changesBetween} names in the configuration that was compared: its operations move no item
 * of a list before a later one names it.
 */
export function valueAt(whole: unknown, path: string): unknown {
  const names = path.split('/').slice(1);
  return names.reduce(
    (value: unknown, name) => (value as Members)[name.replaceAll('~1', '/').replaceAll('~0', '~')],
    whole,
  );
}

function pathTo(path: string, name: string): string {
  return `${path}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

function isObject(value: unknown): value is Members {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
