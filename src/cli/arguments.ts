import { InvalidArgumentError, Option } from 'commander';
import { Clock } from '../clock';

const SECONDS: Record<string, number> = { '': 1, s: 1, m: 60, h: 3_600, d: 86_400 };

function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,10})([smhd]?)$/.exec(text);
  return match ? Number(match[1]) * (SECONDS[match[2] as string] as number) : undefined;
}

/** Parses a duration: `90d`, `12h`, `30m`, `45s` or a number of seconds. @returns seconds */
export function durationSeconds(text: string): number {
  const duration = parseDuration(text);
  if (duration === undefined)
    throw new InvalidArgumentError('It must be a duration such as 90d, 12h, 30m or 45s.');
  return duration;
}

/**
 * Parses an instant: RFC 3339, or a duration from now, with a sign or without.
 * @param direction the direction of a duration without a sign: `--since 2h` is two hours ago, `--not-after 1d` a day ahead
 * @returns RFC 3339; any other text unchanged, so that the server checks it
 */
export function instant(text: string, direction: 'past' | 'future', now = new Clock().now()): string {
  const match = /^([+-]?)(\d{1,10}[smhd])$/.exec(text);
  const duration = match && parseDuration(match[2] as string);
  if (!match || duration === undefined || duration === null) return text;
  const sign = match[1] === '' ? (direction === 'past' ? -1 : 1) : match[1] === '-' ? -1 : 1;
  const at = now + sign * duration * 1_000;
  const [first, last] = [Date.UTC(2000, 0, 1), Date.UTC(9999, 0, 1)];
  if (at < first || at > last) throw new InvalidArgumentError('It lies too far away.');
  return new Date(at).toISOString();
}

/** An option that takes an instant, usually in the past. */
export const pastTimeOption = (flag: string, description: string): Option =>
  new Option(`${flag} <time>`, `${description} (RFC 3339, or a duration ago such as 2h)`).argParser(
    (text: string) => instant(text, 'past'),
  );

/** An option that takes an instant, usually in the future. */
export const futureTimeOption = (flag: string, description: string): Option =>
  new Option(`${flag} <time>`, `${description} (RFC 3339, or from now such as +10m)`).argParser(
    (text: string) => instant(text, 'future'),
  );

/** An option with a few known values: help and completion list them, the server checks what is given. */
export function choiceOption(flags: string, description: string, values: readonly string[]): Option {
  const option = new Option(flags, description);
  option.argChoices = [...values];
  return option;
}

/** Parses a whole number. */
export function integer(text: string): number {
  const value = /^-?\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('It must be a whole number.');
  return value;
}

/** Parses an id. */
export function id(text: string): number {
  const value = integer(text);
  if (value < 1) throw new InvalidArgumentError('It must be a whole number from 1.');
  return value;
}

/** Parses the id of an agent. A name is refused with the command that finds the agent's id. */
export function agentId(text: string): number {
  if (/^\d/.test(text)) return id(text);
  throw new InvalidArgumentError(
    'It must be a whole number: `control-plane agents list --hostname NAME` shows the id of an agent.',
  );
}

/** Parses a number of seconds, from 1 to an hour. */
export function timeoutSeconds(text: string): number {
  const value = integer(text);
  if (value < 1 || value > 3_600) throw new InvalidArgumentError('It must be from 1 to 3600 seconds.');
  return value;
}

/** Parses `name=value` and adds it to the earlier ones. */
export function nameValue(text: string, before: Record<string, string> = {}): Record<string, string> {
  const cut = text.indexOf('=');
  if (cut < 1) throw new InvalidArgumentError('It must be name=value.');
  if (Object.hasOwn(before, text.slice(0, cut))) throw new InvalidArgumentError('It is there twice.');
  return { ...before, [text.slice(0, cut)]: text.slice(cut + 1) };
}

/** The option `--label`, which may be repeated. */
export const labelOption = (): Option =>
  new Option('--label <name=value>', 'a label; may be repeated').argParser<Record<string, string>>(nameValue);
