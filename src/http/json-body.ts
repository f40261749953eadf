import { isUtf8 } from 'node:buffer';
import { type ErrorDetails, fail } from '../errors';
import { fieldName } from './text';

/** How deep a body may nest. Nothing of the contract needs more than a few levels; observations may carry some. */
export const MAX_DEPTH = 64;

/** In a longer body it is not looked for which name is there twice, in characters: that costs more than the parsing. */
const MAX_SEARCHED = 64 * 1024;

// Of the space that JSON allows the last in the order of codes; nothing else of JSON is as low.
const SPACE = 0x20;
const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** A longer number may not be the one that was written. */
const EXACT_DIGITS = 15;

/** What is wrong with an item that is judged alone, by its path in the body. */
const faults = new WeakMap<object, ErrorDetails>();

/**
 * Of the objects with a member that is kept as it was sent: its name and its text, if it has a number that JSON.stringify
 * would write otherwise. One text for each, so that a body of nothing but such numbers costs no more than another.
 */
const sources = new WeakMap<object, readonly [name: string, text: string]>();

/** Items of a body that are judged alone, and what of them is kept as it was sent. */
export interface JudgedItems {
  /** The lists of the body that they are in; one that is wrong does not make the others wrong. */
  readonly lists: readonly string[];
  /** Where in an item, any index as `*`, the value is that {@link textOfMember} writes: `['observations', '*', 'value']`. */
  readonly asSent?: readonly string[];
}

/**
 * Reads a JSON body, deciding once for the whole program what `JSON.parse` leaves open: keys that are there twice, deep
 * nesting and numbers that are not finite are refused. Texts are taken as they are, `\u0000` and lone surrogates included,
 * and any key is a member of its own, `__proto__` too: each field's own check says what it takes.
 * @param items those that do not make the others wrong; {@link faultOf} tells what is wrong with one
 * @throws ERR_VALIDATION naming the field
 */
export function parseJsonBody(body: Buffer, items?: JudgedItems): unknown {
  if (body.length === 0) throw fail('ERR_VALIDATION', { body: 'must not be empty' });
  if (!isUtf8(body)) throw fail('ERR_VALIDATION', { body: 'must be UTF-8' });
  const text = body.toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('ERR_VALIDATION', { body: 'must be JSON' });
  }
  new BodyInspection(text, items).inspect(value);
  return value;
}

/** What the parser found wrong with an item of a list whose items are judged alone; undefined if nothing. */
export function faultOf(item: object): ErrorDetails | undefined {
  return faults.get(item);
}

/**
 * Writes the member of an item that is kept as it was sent: numbers with the digits that they had (`-0.0`, `1e308`), texts
 * with their escapes. The result is well-formed Unicode without `\u0000`, so that any database can keep it.
 */
export function textOfMember(holder: object, name: string): string {
  const [kept, text] = sources.get(holder) ?? [];
  return text !== undefined && kept === name
    ? compact(text)
    : JSON.stringify((holder as Record<string, unknown>)[name]);
}

/** JSON without the space between its parts, and with its strings as JSON.stringify writes them. */
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

/** Where the string of a JSON text ends that begins with this quotation mark. */
function endOfString(json: string, start: number): number {
  let at = start + 1;
  for (; json.charCodeAt(at) !== QUOTE; at++) if (json.charCodeAt(at) === BACKSLASH) at++;
  return at + 1;
}

/**
 * Goes through a text that is known to be JSON, beside the value that it was parsed to: the value alone does not tell which
 * keys were there twice or how a number was written.
 */
class BodyInspection {
  private at = 0;
  private readonly path: (string | number)[] = [];
  private readonly lists: ReadonlySet<unknown>;
  private readonly asSent: readonly string[];
  /** The item that is judged alone, while it is gone through. */
  private item: object | undefined;
  /** Whether a number would be written otherwise, while a value is gone through that is kept as it was sent. */
  private isInexact: boolean | undefined;

  constructor(
    private readonly text: string,
    items?: JudgedItems,
  ) {
    this.lists = new Set(items?.lists);
    this.asSent = items?.asSent ?? [];
  }

  inspect(value: unknown): void {
    this.value(value);
  }

  private value(value: unknown, holder?: object): void {
    this.skipSpace();
    const start = this.at;
    const isKept = holder !== undefined && this.isKept();
    if (isKept) this.isInexact = false;
    const code = this.text.charCodeAt(start);
    if (code === QUOTE) this.at = endOfString(this.text, start);
    else if (code === MINUS || (code >= ZERO && code <= NINE)) this.number(value);
    else if (code === OPEN_OBJECT || code === OPEN_LIST) this.container(value, code === OPEN_LIST);
    // true and null have four letters, false has five.
    else this.at += code === 0x66 ? 5 : 4;
    if (!isKept) return;
    if (this.isInexact) sources.set(holder, [this.asSent.at(-1) as string, this.text.slice(start, this.at)]);
    this.isInexact = undefined;
  }

  private number(value: unknown): void {
    const start = this.at;
    let isPlain = true;
    for (;;) {
      const code = this.text.charCodeAt(++this.at);
      if (code >= ZERO && code <= NINE) continue;
      // What may stand in a number besides digits: . e E + -
      if (code !== DOT && code !== 0x65 && code !== 0x45 && code !== 0x2b && code !== MINUS) break;
      isPlain = false;
    }
    const isShort = this.at - start <= EXACT_DIGITS;
    if (isPlain && isShort && !(this.at - start === 2 && this.text.startsWith('-0', start))) return;
    if (!Number.isFinite(value)) {
      // Of a key that is there twice the value is another; that is told by its object.
      if (typeof value === 'number') this.refuse(this.path, 'must be a number that can be represented');
    } else if (this.isInexact === false)
      this.isInexact = this.text.slice(start, this.at) !== JSON.stringify(value);
  }

  private container(value: unknown, isList: boolean): void {
    // Of a key that is there twice the value is another; that is told by its object.
    if (typeof value !== 'object' || value === null || Array.isArray(value) !== isList) {
      this.skipContainer();
      return;
    }
    if (this.path.length >= MAX_DEPTH) {
      this.refuse([], `must not nest deeper than ${MAX_DEPTH}`);
      this.skipContainer();
      return;
    }
    const isItem = this.path.length === 2 && this.isInItem();
    if (isItem) this.item = value;
    if (isList) this.list(value as unknown[]);
    else this.object(value as Record<string, unknown>);
    if (isItem) this.item = undefined;
  }

  private list(list: readonly unknown[]): void {
    const depth = this.path.length;
    this.path.push(0);
    for (let i = 0; this.hasMember(i, CLOSE_LIST); i++) {
      this.path[depth] = i;
      this.value(list[i], list);
    }
    this.path.pop();
  }

  private object(object: Record<string, unknown>): void {
    const depth = this.path.length;
    const start = this.at;
    let members = 0;
    this.path.push('');
    for (; this.hasMember(members, CLOSE_OBJECT); members++) {
      const name = this.name();
      this.path[depth] = name;
      this.value(object[name], object);
    }
    this.path.pop();
    if (members !== Object.keys(object).length) this.refuseDuplicate(start);
  }

  /** Steps over the opening bracket or the comma before a container's member, or over its closing bracket. */
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

  /** Reads a member's name and steps over its colon. */
  private name(): string {
    this.skipSpace();
    const start = this.at;
    this.at = endOfString(this.text, this.at);
    const written = this.text.slice(start + 1, this.at - 1);
    this.skipSpace();
    this.at++;
    return written.includes('\\') ? (JSON.parse(`"${written}"`) as string) : written;
  }

  private skipSpace(): void {
    while (this.text.charCodeAt(this.at) <= SPACE) this.at++;
  }

  /** Steps over an object or a list of any depth. */
  private skipContainer(): void {
    for (let depth = 0; ; ) {
      const code = this.text.charCodeAt(this.at);
      if (code === QUOTE) {
        this.at = endOfString(this.text, this.at);
        continue;
      }
      this.at++;
      if (code === OPEN_OBJECT || code === OPEN_LIST) depth++;
      else if ((code === CLOSE_OBJECT || code === CLOSE_LIST) && --depth === 0) return;
    }
  }

  /** Names the first key that the object which begins here has twice. */
  private refuseDuplicate(start: number): void {
    if (this.text.length > MAX_SEARCHED) {
      this.refuse(this.path, 'must not hold a name twice');
      return;
    }
    const end = this.at;
    this.at = start + 1;
    const names = new Set<string>();
    let name = this.name();
    while (!names.has(name)) {
      names.add(name);
      this.skipSpace();
      const code = this.text.charCodeAt(this.at);
      if (code === OPEN_OBJECT || code === OPEN_LIST) this.skipContainer();
      else if (code === QUOTE) this.at = endOfString(this.text, this.at);
      while (this.text.charCodeAt(this.at) !== COMMA) this.at++;
      this.at++;
      name = this.name();
    }
    this.at = end;
    this.refuse([...this.path, name], 'must not be there twice');
  }

  private isInItem(): boolean {
    return typeof this.path[1] === 'number' && this.lists.has(this.path[0]);
  }

  /** Whether the value at this path is kept as it was sent. */
  private isKept(): boolean {
    return (
      this.item !== undefined &&
      this.path.length === 2 + this.asSent.length &&
      this.asSent.every((name, i) =>
        name === '*' ? typeof this.path[2 + i] === 'number' : name === this.path[2 + i],
      )
    );
  }

  /** @throws ERR_VALIDATION unless the fault is in an item that is judged alone: that keeps the first of its faults */
  private refuse(path: readonly (string | number)[], problem: string): void {
    if (!this.isInItem()) throw fail('ERR_VALIDATION', { [nameOf(path)]: problem });
    const field = nameOf(path.length === 0 ? this.path.slice(0, 2) : path);
    // An item that is no object is judged by that.
    if (this.item && !faults.has(this.item)) faults.set(this.item, { [field]: problem });
  }
}

/** A path as details name it; the empty one is the body. */
function nameOf(path: readonly (string | number)[]): string {
  return path.length === 0 ? 'body' : fieldName(path.join('.'));
}
