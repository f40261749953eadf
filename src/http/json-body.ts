import { isUtf8 } from 'node:buffer';
import { randomInt } from 'node:crypto';
import { type ErrorDetails, fail } from '../errors';
import { fieldName } from './text';

// Names are distinguished by FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/) from a secret seed, and its upper bits after
// Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
const FNV_PRIME = 0x01000193;
const SEED = randomInt(2 ** 32) | 0;
const GOLDEN = 0x9e3779b1;
/** Size of the table of names: at the limit, one name in ten collides with another. */
const NAME_BITS = 17;

/** How deep a body may nest. The contract needs only a few levels; observations may have more. */
export const MAX_DEPTH = 64;

/** In longer bodies, in characters, a duplicate name is refused without naming it: the search costs more than parsing. */
const MAX_SEARCHED = 64 * 1024;

// The highest code of JSON's white space; every other character of JSON is higher.
const SPACE = 0x20;
const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** A number with more digits may lose precision. */
const EXACT_DIGITS = 15;

/** The problems of items that are judged alone: field paths to messages. */
const faults = new WeakMap<object, ErrorDetails>();

/**
 * The text of a member that is kept as it was sent, if JSON.stringify would write it differently. It is a property of the
 * object, under a symbol that no JSON can set: a WeakMap costs ten times as much.
 */
const SOURCE = Symbol('source');

interface WithSource {
  [SOURCE]?: readonly [name: string, text: string];
}

/** The members of a body that are read. Members that are not named are skipped, and may hold any JSON. */
export type BodyShape = Readonly<Record<string, MemberShape>>;

/** How a member of a body is read, or each item of it if it is a list. */
export interface MemberShape {
  /** Its members; all of them if left out. */
  readonly members?: BodyShape;
  /** Its items are judged alone: an invalid one does not make the others invalid. The value is the longest list allowed. */
  readonly judgedAlone?: number;
  /** Its text is kept as it was sent; see {@link textOfMember}. */
  readonly asSent?: true;
}

const WHOLE: MemberShape = {};

/**
 * How many values a body may hold. Ten thousand tasks have half of that, and so has the longest report of a probe. A body of
 * brackets alone would have millions, and cost a hundred times the processor time and memory of its bytes.
 */
export const MAX_VALUES = 300_000;

/**
 * About how many different names the members of a body may have: the parser keeps each in a table, which costs more than
 * the values. Probes send a few dozen.
 */
export const MAX_NAMES = 20_000;

/** The memory of a parsed value, in bytes: measured 20 to 100, depending on its type. */
export const VALUE_BYTES = 64;

/**
 * Counts the values of a JSON text before it is parsed. An empty list or object counts as if it held one value. For text that
 * is not JSON the count is arbitrary.
 * @throws ERR_VALIDATION there are more than {@link MAX_VALUES}, or more names than {@link MAX_NAMES}
 */
export function countValues(body: Buffer): number {
  // A member with a name of its own takes more than five bytes.
  const names = body.length > 5 * MAX_NAMES ? new NameCount() : undefined;
  let values = 1;
  // The last string; a colon after it makes it a name.
  let [start, end] = [0, 0];
  for (let at = 0; at < body.length; at++) {
    const code = body[at];
    if (code === QUOTE) {
      start = ++at;
      while (at < body.length && body[at] !== QUOTE) at += body[at] === BACKSLASH ? 2 : 1;
      end = at;
    } else if (code === COLON) {
      names?.add(body, start, end);
      // Text that is not JSON may have many colons in a row: the name must be hashed only once.
      start = end;
    } else if (code === COMMA || code === OPEN_LIST || code === OPEN_OBJECT) values++;
  }
  const [most, of] = values > MAX_VALUES ? [MAX_VALUES, 'values'] : [MAX_NAMES, 'different names'];
  if (values > MAX_VALUES || (names && names.count > MAX_NAMES))
    throw fail('ERR_VALIDATION', { body: `must not hold more than ${most} ${of}` });
  return values;
}

/** Counts different names by hash, so slightly too few because of collisions. Numeric names count each time. */
class NameCount {
  count = 0;
  private readonly seen = new Uint8Array(2 ** (NAME_BITS - 3));

  /** Counts the bytes from `start` to `end` as a name. */
  add(body: Buffer, start: number, end: number): void {
    // V8 keeps numeric names in a separate table per object, which costs as much as new names.
    if (isDigit(body[start] as number)) {
      this.count++;
      return;
    }
    let hash = SEED;
    for (let at = start; at < end; at++) hash = Math.imul(hash ^ (body[at] as number), FNV_PRIME);
    const bit = Math.imul(hash, GOLDEN) >>> (32 - NAME_BITS);
    const mask = 1 << (bit & 7);
    if ((this.seen[bit >> 3] as number) & mask) return;
    this.seen[bit >> 3] |= mask;
    this.count++;
  }
}

/**
 * Parses a JSON body. It decides for the whole program what `JSON.parse` leaves open: duplicate names, deep nesting and
 * numbers that are not finite are refused. Strings are taken as they are, with `\u0000` and lone surrogates, and any name is
 * an ordinary member, even `__proto__`: the check of each field decides what it accepts.
 * @param shape the members that are read; all if left out. {@link faultOf} gives the problems of items judged alone
 * @throws ERR_VALIDATION naming the field
 */
export function parseJsonBody(body: Buffer, shape?: BodyShape): unknown {
  if (body.length === 0) throw fail('ERR_VALIDATION', { body: 'must not be empty' });
  if (!isUtf8(body)) throw fail('ERR_VALIDATION', { body: 'must be UTF-8' });
  const text = body.toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('ERR_VALIDATION', { body: 'must be JSON' });
  }
  new BodyInspection(text).inspect(value, shape);
  return value;
}

/** The problem that the parser found in an item judged alone; undefined if none. */
export function faultOf(item: object): ErrorDetails | undefined {
  return faults.get(item);
}

/**
 * Writes the JSON of a member that is kept as it was sent: numbers with their original digits (`-0.0`, `1e308`), strings with
 * escapes. The result is well-formed Unicode without `\u0000`, so that any database can store it.
 */
export function textOfMember(holder: object, name: string): string {
  const text = keptText(holder, name);
  return text === undefined ? JSON.stringify((holder as Record<string, unknown>)[name]) : compact(text);
}

/** About how long {@link textOfMember} is: that of a member whose text is kept costs nothing. */
export function lengthOfMember(holder: object, name: string): number {
  return (keptText(holder, name) ?? JSON.stringify((holder as Record<string, unknown>)[name]) ?? '').length;
}

/** The text of a member as it was sent, if it was kept. */
function keptText(holder: object, name: string): string | undefined {
  const [kept, text] = (holder as WithSource)[SOURCE] ?? [];
  return kept === name ? text : undefined;
}

/** Removes white space from JSON, and writes its strings as JSON.stringify does. */
function compact(json: string): string {
  const parts: string[] = [];
  let from = 0;
  for (let at = 0; at < json.length; ) {
    const start = at;
    const code = json.charCodeAt(at);
    let instead = '';
    if (code === QUOTE) {
      at = endOfString(json, at);
      const written = json.slice(start, at);
      if (!written.includes('\\')) continue;
      instead = JSON.stringify(JSON.parse(written));
    } else {
      at++;
      if (code > SPACE) continue;
    }
    parts.push(json.slice(from, start), instead);
    from = at;
  }
  return parts.join('') + json.slice(from);
}

/** The index after the JSON string that starts at this quotation mark. */
function endOfString(json: string, start: number): number {
  let at = start + 1;
  for (; json.charCodeAt(at) !== QUOTE; at++) if (json.charCodeAt(at) === BACKSLASH) at++;
  return at + 1;
}

/**
 * Walks valid JSON text along with its parsed value: the value alone does not show duplicate names or how a number was
 * written.
 */
class BodyInspection {
  private at = 0;
  private readonly path: (string | number)[] = [];
  /** True inside an item that is judged alone; `item` is set if it is an object or a list. */
  private isInItem = false;
  private item: object | undefined;
  /** Inside a member kept as sent: whether JSON.stringify would write it differently. Undefined elsewhere. */
  private isRewritten: boolean | undefined;

  constructor(private readonly text: string) {}

  inspect(value: unknown, members: BodyShape | undefined): void {
    this.value(value, members ? { members } : WHOLE);
  }

  /** @param holder the object whose member the value is */
  private value(value: unknown, shape: MemberShape, holder?: object): void {
    this.skipSpace();
    const start = this.at;
    const isKept = shape.asSent === true && holder !== undefined;
    if (isKept) this.isRewritten = false;
    const code = this.text.charCodeAt(start);
    if (code === MINUS || isDigit(code)) this.number(value);
    else if (code === OPEN_OBJECT || code === OPEN_LIST) this.container(value, shape, code === OPEN_LIST);
    else this.skipValue();
    if (!isKept) return;
    if (this.isRewritten)
      (holder as WithSource)[SOURCE] = [this.path.at(-1) as string, this.text.slice(start, this.at)];
    this.isRewritten = undefined;
  }

  private number(value: unknown): void {
    const start = this.at;
    const isPlain = this.skipNumber();
    const isShort = this.at - start <= EXACT_DIGITS;
    if (isPlain && isShort && !(this.at - start === 2 && this.text.startsWith('-0', start))) return;
    if (!Number.isFinite(value)) {
      // For a duplicate name the parsed value is that of the last one; the object reports it.
      if (typeof value === 'number') this.refuse(this.path, 'must be a number that can be represented');
    } else if (this.isRewritten === false)
      this.isRewritten = this.text.slice(start, this.at) !== JSON.stringify(value);
  }

  private container(value: unknown, shape: MemberShape, isList: boolean): void {
    // For a duplicate name the parsed value is that of the last one; the object reports it.
    if (typeof value !== 'object' || value === null || Array.isArray(value) !== isList) {
      this.skipValue();
      return;
    }
    if (this.path.length >= MAX_DEPTH) {
      this.refuse([], `must not nest deeper than ${MAX_DEPTH}`);
      this.skipValue();
      return;
    }
    if (!isList) this.object(value as Record<string, unknown>, shape.members);
    else if (shape.judgedAlone === undefined) this.list(value as unknown[], shape);
    else this.items(value as unknown[], shape, shape.judgedAlone);
  }

  /** Walks a list whose items are judged alone. */
  private items(list: readonly unknown[], { members }: MemberShape, maxLength: number): void {
    // The check of the field refuses it.
    if (list.length > maxLength) this.skipValue();
    else this.list(list, members ? { members } : WHOLE, true);
  }

  private list(list: readonly unknown[], shape: MemberShape, isJudged = false): void {
    const depth = this.path.length;
    this.path.push(0);
    for (let i = 0; this.hasMember(i, CLOSE_LIST); i++) {
      this.path[depth] = i;
      const value = list[i];
      if (isJudged) this.enter(value);
      this.value(value, shape);
    }
    if (isJudged) this.isInItem = false;
    this.path.pop();
  }

  private enter(item: unknown): void {
    this.isInItem = true;
    this.item = typeof item === 'object' && item !== null ? item : undefined;
  }

  private object(object: Record<string, unknown>, members: BodyShape | undefined): void {
    const depth = this.path.length;
    const start = this.at;
    let read = 0;
    this.path.push('');
    for (let i = 0; this.hasMember(i, CLOSE_OBJECT); i++) {
      const name = this.name();
      if (!isNamed(name, members)) {
        this.skipSpace();
        this.skipValue();
        continue;
      }
      read++;
      this.path[depth] = name;
      this.value(object[name], members?.[name] ?? WHOLE, object);
    }
    this.path.pop();
    if (read !== countNamed(object, members)) this.refuseDuplicate(start, members);
  }

  /** Skips the opening bracket or the comma before a member, or the closing bracket. @returns whether there is a member */
  private hasMember(index: number, close: number): boolean {
    if (index === 0) this.at++;
    this.skipSpace();
    if (this.text.charCodeAt(this.at) === close) {
      this.at++;
      return false;
    }
    if (index > 0) this.at++;
    return true;
  }

  /** Reads a member's name, and skips its colon. */
  private name(): string {
    this.skipSpace();
    const start = this.at;
    this.at = endOfString(this.text, this.at);
    const written = this.text.slice(start + 1, this.at - 1);
    this.skipSpace();
    this.at++;
    const name = written.includes('\\') ? (JSON.parse(`"${written}"`) as string) : written;
    // JavaScript moves integer names to the front of an object.
    if (this.isRewritten === false && isDigit(name.charCodeAt(0))) this.isRewritten = true;
    return name;
  }

  private skipSpace(): void {
    while (this.text.charCodeAt(this.at) <= SPACE) this.at++;
  }

  /** Skips the value at this position. */
  private skipValue(): void {
    const code = this.text.charCodeAt(this.at);
    if (code === QUOTE) this.at = endOfString(this.text, this.at);
    else if (code === MINUS || isDigit(code)) this.skipNumber();
    else if (code === OPEN_OBJECT || code === OPEN_LIST) this.skipContainer();
    // true and null have four letters, false has five.
    else this.at += code === 0x66 ? 5 : 4;
  }

  /** Skips a number. @returns whether it consists of digits with an optional sign */
  private skipNumber(): boolean {
    let isPlain = true;
    let code = this.text.charCodeAt(++this.at);
    while (isDigit(code) || isNumberSign(code)) {
      if (!isDigit(code)) isPlain = false;
      code = this.text.charCodeAt(++this.at);
    }
    return isPlain;
  }

  private skipContainer(): void {
    let depth = 0;
    do {
      const code = this.text.charCodeAt(this.at);
      if (code === OPEN_OBJECT || code === OPEN_LIST) depth++;
      else if (code === CLOSE_OBJECT || code === CLOSE_LIST) depth--;
      this.at = code === QUOTE ? endOfString(this.text, this.at) : this.at + 1;
    } while (depth > 0);
  }

  /** Refuses the object that starts here, naming its first duplicate name. */
  private refuseDuplicate(start: number, members: BodyShape | undefined): void {
    // An item keeps its first problem.
    if (this.isInItem && this.item && faults.has(this.item)) return;
    if (this.text.length > MAX_SEARCHED) {
      this.refuse(this.path, 'must not hold a name twice');
      return;
    }
    const end = this.at;
    const names = new Set<string>();
    this.at = start;
    for (let i = 0; this.hasMember(i, CLOSE_OBJECT); i++) {
      const name = this.name();
      if (names.has(name)) {
        this.refuse([...this.path, name], 'must not be there twice');
        break;
      }
      if (isNamed(name, members)) names.add(name);
      this.skipSpace();
      this.skipValue();
    }
    this.at = end;
  }

  /** Records the problem if it is in an item judged alone, which keeps its first. @throws ERR_VALIDATION otherwise */
  private refuse(path: readonly (string | number)[], problem: string): void {
    if (!this.isInItem) throw fail('ERR_VALIDATION', { [nameOf(path)]: problem });
    const field = nameOf(path.length === 0 ? this.path.slice(0, 2) : path);
    // An item that is not an object is refused for that.
    if (this.item && !faults.has(this.item)) faults.set(this.item, { [field]: problem });
  }
}

/** Whether a code occurs in numbers besides digits: . e E + - */
const isNumberSign = (code: number): boolean =>
  code === DOT || code === 0x65 || code === 0x45 || code === 0x2b || code === MINUS;

const isDigit = (code: number): boolean => code >= ZERO && code <= NINE;

const isNamed = (name: string, members: BodyShape | undefined): boolean =>
  members === undefined || Object.hasOwn(members, name);

/** Counts the members of an object that are read. */
function countNamed(object: object, members: BodyShape | undefined): number {
  if (members === undefined) return Object.keys(object).length;
  let count = 0;
  for (const name in members) if (Object.hasOwn(object, name)) count++;
  return count;
}

/** Writes a path as `details` name it; the empty path is the body. */
function nameOf(path: readonly (string | number)[]): string {
  return path.length === 0 ? 'body' : fieldName(path.join('.'));
}
