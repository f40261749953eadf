/**
 * Characters that names must not hold: control characters, lone surrogates, line separators, and invisible characters
 * (direction marks, zero-width characters, tags). With them, two different names can look the same, and a name can hide in a
 * list or reorder the line around it.
 */
const HIDDEN = '\\p{Cc}\\p{Cf}\\p{Cs}\\p{Zl}\\p{Zp}';

/** The pattern of a name for the OpenAPI document: no hidden characters, and no space around it. */
export const NAME_PATTERN = `^(?:[^\\s${HIDDEN}](?:[^${HIDDEN}]*[^\\s${HIDDEN}])?)?$`;

/** A rule for a text, besides its length. */
export interface TextRule {
  /** Returns what is wrong with a text; undefined if it is valid. */
  readonly problem: (text: string) => string | undefined;
  /** The rule in the OpenAPI document. */
  readonly schema?: { readonly pattern?: string; readonly format?: string };
}

const hidden = new RegExp(`[${HIDDEN}]`, 'u');

/**
 * Returns what makes a text invalid as a name, hostname, key, label or target. Free values are not checked: they are kept as
 * they were sent.
 * @returns undefined if the text is valid; the empty text is
 */
export function nameProblem(text: string): string | undefined {
  if (hidden.test(text))
    return 'must not hold control characters, invisible characters, or half of a surrogate pair';
  return text.trim() === text ? undefined : 'must not begin or end with a space';
}

/** The longest name of a field in `details`, in UTF-16 units. */
const MAX_FIELD = 200;

/**
 * Writes a path of a request, such as `tasks.3.spec.host`, as `details` name it. Clients choose the names of members, so the
 * path is cut, and U+0000 and lone surrogates, which databases and parsers refuse, become U+FFFD.
 */
export const fieldName = (path: string): string =>
  path.slice(0, MAX_FIELD).toWellFormed().replaceAll('\0', '\ufffd');

/** Whether a text can be a name: {@link nameProblem} finds nothing. */
export const isName = (text: string): boolean => nameProblem(text) === undefined;

/** The rule for names. */
export const NAME: TextRule = { problem: nameProblem, schema: { pattern: NAME_PATTERN } };
