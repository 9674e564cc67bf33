/** Names as a sentence shows them, not more than `most`: "a, b and 4 more". */
export function joinNames(names: readonly string[], most = 5): string {
  const shown = names.slice(0, most).join(", ");
  return names.length > most ? `${shown} and ${names.length - most} more` : shown;
}
