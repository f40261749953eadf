import { registerDecorator } from 'class-validator';
import type { TextRule } from './text';

/** The longest timestamp that a request may hold, in characters. */
const MAX_LENGTH = 64;

const FIRST = Date.parse('0000-01-01T00:00:00.000Z');
const LAST = Date.parse('9999-12-31T23:59:59.999Z');

const RFC_3339 =
  /^(\d{4})-(\d{2})-(\d{2})[Tt](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d{2}):(\d{2}))$/;

/**
 * Parses an RFC 3339 timestamp strictly: real dates only, an offset or Z required, no leap seconds.
 * @returns ms since the epoch, fractions cut off; undefined if it is not a timestamp
 */
export function parseTimestamp(text: string): number | undefined {
  const match = RFC_3339.exec(text);
  if (!match) return undefined;
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const [offsetHours, offsetMinutes] = [Number(match[9] ?? 0), Number(match[10] ?? 0)];
  if (hour > 23 || minute > 59 || second > 59 || offsetHours > 23 || offsetMinutes > 59) return undefined;
  const date = new Date(0);
  date.setUTCFullYear(year, month - 1, day);
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return undefined;
  const millis = Number((match[7] ?? '').padEnd(3, '0').slice(0, 3));
  const local = date.getTime() + ((hour * 60 + minute) * 60 + second) * 1_000 + millis;
  const instant = local - (match[8] === '-' ? -1 : 1) * (offsetHours * 60 + offsetMinutes) * 60_000;
  // With an offset, the instant can lie outside the years 0 to 9999.
  return instant >= FIRST && instant <= LAST ? instant : undefined;
}

/** The rule for timestamps, see {@link parseTimestamp}. */
export const TIMESTAMP: TextRule = {
  problem: (text) => (isTimestamp(text) ? undefined : FORM),
  schema: { format: 'date-time' },
};

const FORM = 'must be an RFC 3339 timestamp such as 2026-01-01T00:00:00Z';

const isTimestamp = (text: string): boolean =>
  text.length <= MAX_LENGTH && parseTimestamp(text) !== undefined;

/** Checks that the value is a timestamp, see {@link parseTimestamp}. */
export function IsTimestamp(): PropertyDecorator {
  return (target, property) =>
    registerDecorator({
      name: 'isTimestamp',
      target: target.constructor,
      propertyName: property as string,
      validator: {
        validate: (value: unknown) => typeof value === 'string' && isTimestamp(value),
        defaultMessage: () => FORM,
      },
    });
}
