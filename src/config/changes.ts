/** One operation of an RFC 6902 JSON Patch. */
export interface Change {
  readonly op: 'add' | 'remove' | 'replace';
  /** An RFC 6901 JSON Pointer; empty for the whole document. */
  readonly path: string;
  /** The new value; absent if `op` is `remove`. */
  readonly value?: unknown;
}

/** The longest list of changes, in characters without values. Beyond it, the whole configuration is easier to read. */
const MAX_CHARS = 1_048_576;

/** The length of an operation as JSON, without its path and its value. */
const OPERATION_CHARS = 32;

class TooLong extends Error {}

type Members = Record<string, unknown>;

/**
 * Computes an RFC 6902 JSON Patch from one configuration to another. It takes one pass, so the patch is not always the
 * shortest: in a list, equal items at the start and the end are skipped, and those in between are compared by position.
 * If the patch gets too long, it becomes one replacement of the whole document.
 */
export function changesBetween(before: object, after: object): Change[] {
  const ids = new ValueIds();
  const changes: Change[] = [];
  let chars = 0;

  const add = (change: Change): void => {
    chars += change.path.length + OPERATION_CHARS;
    if (chars > MAX_CHARS) throw new TooLong();
    changes.push(change);
  };

  const compare = (path: string, from: unknown, to: unknown): void => {
    if (ids.idOf(from) === ids.idOf(to)) return;
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
    const same = (i: number, j: number) => ids.idOf(from[i]) === ids.idOf(to[j]);
    const shorter = Math.min(from.length, to.length);
    let start = 0;
    while (start < shorter && same(start, start)) start++;
    let end = 0;
    while (end < shorter - start && same(from.length - 1 - end, to.length - 1 - end)) end++;
    const shared = shorter - end;
    for (let i = start; i < shared; i++) compare(`${path}/${i}`, from[i], to[i]);
    // Last to first, so that a removal does not move the items that are removed after it.
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

/** Gives equal values equal ids. Visits each object once, however often its id is asked for. */
class ValueIds {
  private readonly byText = new Map<string, number>();
  private readonly byObject = new WeakMap<object, number>();

  idOf(value: unknown): number {
    if (typeof value !== 'object' || value === null) return this.idOfText(JSON.stringify(value));
    let id = this.byObject.get(value);
    if (id === undefined) {
      const parts = Array.isArray(value)
        ? value.map((item) => this.idOf(item))
        : // Sorted, because the order of members does not matter.
          Object.keys(value)
            .sort()
            .map((name) => `${JSON.stringify(name)}:${this.idOf((value as Members)[name])}`);
      id = this.idOfText(Array.isArray(value) ? `[${parts}]` : `{${parts}}`);
      this.byObject.set(value, id);
    }
    return id;
  }

  private idOfText(text: string): number {
    const id = this.byText.get(text) ?? this.byText.size;
    this.byText.set(text, id);
    return id;
  }
}

/**
 * Returns the value in the compared configuration that a path of {@link changesBetween} points to. This works because no
 * operation moves a list item that a later operation names.
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
