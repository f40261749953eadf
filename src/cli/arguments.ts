import { InvalidArgumentError, Option } from 'commander';
import { Clock } from '../clock';

const SECONDS: Record<string, number> = { '': 1, s: 1, m: 60, h: 3_600, d: 86_400 };

function durationOf(text: string): number | undefined {
  const match = /^(\d{1,10})([smhd]?)$/.exec(text);
  return match ? Number(match[1]) * (SECONDS[match[2] as string] as number) : undefined;
}

/** `90d`, `12h`, `30m`, `45s` or a number of seconds. */
export function seconds(text: string): number {
  const duration = durationOf(text);
  if (duration === undefined)
    throw new InvalidArgumentError('It must be a duration such as 90d, 12h, 30m or 45s.');
  return duration;
}

/**
 * An instant: RFC 3339, or a duration from now. With a sign it lies where the sign says; without one it lies where the
 * option looks, as `--since 2h` is two hours ago and `--not-after 1d` a day ahead. Anything else is the server's to judge.
 */
export function instant(text: string, looks: 'back' | 'ahead', now = new Clock().now()): string {
  const match = /^([+-]?)(\d{1,10}[smhd])$/.exec(text);
  const duration = match && durationOf(match[2] as string);
  if (!match || duration === undefined || duration === null) return text;
  const sign = match[1] === '' ? (looks === 'back' ? -1 : 1) : match[1] === '-' ? -1 : 1;
  const at = now + sign * duration * 1_000;
  const [first, last] = [Date.UTC(2000, 0, 1), Date.UTC(9999, 0, 1)];
  if (at < first || at > last) throw new InvalidArgumentError('It lies too far away.');
  return new Date(at).toISOString();
}

/** An option that takes an instant of the past. */
export const pastOption = (flag: string, description: string): Option =>
  new Option(`${flag} <time>`, `${description} (RFC 3339, or as long ago as 2h)`).argParser((text: string) =>
    instant(text, 'back'),
  );

/** An option that takes an instant of the future. */
export const futureOption = (flag: string, description: string): Option =>
  new Option(`${flag} <time>`, `${description} (RFC 3339, or from now as +10m)`).argParser((text: string) =>
    instant(text, 'ahead'),
  );

/** An option whose value is one of a few: help and completion name them, the server judges what is given. */
export function oneOf(flags: string, description: string, values: readonly string[]): Option {
  const option = new Option(flags, description);
  option.argChoices = [...values];
  return option;
}

/** A whole number. */
export function whole(text: string): number {
  const value = /^-?\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('It must be a whole number.');
  return value;
}

/** An id of anything. */
export function id(text: string): number {
  const value = whole(text);
  if (value < 1) throw new InvalidArgumentError('It must be a whole number from 1.');
  return value;
}

/** Seconds from 1 to an hour. */
export function patience(text: string): number {
  const value = whole(text);
  if (value < 1 || value > 3_600) throw new InvalidArgumentError('It must be from 1 to 3600 seconds.');
  return value;
}

/** `name=value`, collected. */
export function pair(text: string, before: Record<string, string> = {}): Record<string, string> {
  const cut = text.indexOf('=');
  if (cut < 1) throw new InvalidArgumentError('It must be name=value.');
  if (Object.hasOwn(before, text.slice(0, cut))) throw new InvalidArgumentError('It is there twice.');
  return { ...before, [text.slice(0, cut)]: text.slice(cut + 1) };
}

/** The option `--label`, which may be repeated. */
export const labelOption = (): Option =>
  new Option('--label <name=value>', 'a label; may be repeated').argParser<Record<string, string>>(pair);
