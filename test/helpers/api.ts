import type { paths } from '../../.cache/api';

// The bodies of answers, by method and path, from the OpenAPI document. Tests read what they expect to be there, so nothing is
// null or left out by its type, and a list has a first item: what is not there makes the expectation fail.

/** A value as tests read it. */
export type Read<Value> = Value extends readonly (infer Item)[]
  ? Listed<Read<Item>>
  : Value extends object
    ? [keyof Value] extends [never]
      ? Unlisted
      : { [Field in keyof Value]-?: Read<NonNullable<Value[Field]>> }
    : Value;

/** A list whose first items, and one that is looked for, can be read without a check. */
type Listed<Item> = { find(test: (item: Item) => boolean): Item } & [Item, Item, Item, Item, ...Item[]];

/** What every error says. */
export interface Problem {
  readonly error: string;
  readonly message: string;
  readonly retryable: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: each error has details of its own.
  readonly details: any;
}

type Route = keyof paths;
type WithoutQuery<Path extends string> = Path extends `${infer Front}?${string}` ? Front : Path;
type Segments<Path extends string> = Path extends `${infer First}/${infer Rest}`
  ? [First, ...Segments<Rest>]
  : [Path];
type Fits<Asked extends string[], Known extends string[]> = Asked extends [
  infer One extends string,
  ...infer Others extends string[],
]
  ? Known extends [infer Name extends string, ...infer Names extends string[]]
    ? Name extends `{${string}}`
      ? Fits<Others, Names>
      : One extends Name
        ? Fits<Others, Names>
        : false
    : false
  : Known extends []
    ? true
    : false;

/** The route of the document that a path is of; never, if there is none or the path is not known when the test is compiled. */
type RouteOf<Path extends string> = Path extends Route
  ? Path
  : { [Known in Route]: Fits<Segments<Path>, Segments<Known>> extends true ? Known : never }[Route];

type Content<Response> = Response extends { content: { 'application/json': infer Body } } ? Body : never;
type Success<Responses> = {
  [Status in keyof Responses]: Status extends 200 | 201 | 202 ? Content<Responses[Status]> : never;
}[keyof Responses];
type Operation<Path extends Route, Method extends string> =
  Lowercase<Method> extends keyof paths[Path] ? paths[Path][Lowercase<Method>] : never;

/** The body of an answer: what the operation answers, and what an error says. */
export type BodyOf<Method extends string, Path extends string> = [RouteOf<WithoutQuery<Path>>] extends [never]
  ? Unlisted
  : Operation<RouteOf<WithoutQuery<Path>>, Method> extends { responses: infer Responses }
    ? [Success<Responses>] extends [never]
      ? Unlisted
      : Read<Success<Responses>> & Problem
    : Unlisted;

/** A body that the document says nothing of: of a path that is put together while the test runs, or that does not exist. */
// biome-ignore lint/suspicious/noExplicitAny: only the test knows.
export type Unlisted = any;

/** JSON, YAML or rows whose form only the test knows: of files, of other programs, of SQL. */
// biome-ignore lint/suspicious/noExplicitAny: only the test knows.
export type Json = any;

/** A lease as it is granted. */
export type Lease = BodyOf<'POST', '/claim'>['leases'][0];
/** A task as a list shows it, and with its attempts. */
export type Task = BodyOf<'GET', '/v1/tasks/{id}'>;
